#include <random>

#include "data/crawl/charset.h"
#include "data/crawl/text_extract.h"
#include "tests/support/catch.h"
#include "tests/support/crawl_files.h"

using namespace stoa;
using namespace stoa::test;

namespace {

std::string response_text(const std::string& headers, const std::string& body,
                          const std::string& status = "200 OK") {
    WarcRecord record;
    record.type = "response";
    record.body = http_response(headers, body, status);
    return record_text(record);
}

std::string valid(const std::string& bytes, std::int64_t* bad_out = nullptr) {
    std::int64_t bad = 0;
    std::string out = to_valid_utf8(bytes, bad);
    if (bad_out) *bad_out = bad;
    return out;
}

const std::string kHtml = "Content-Type: text/html\r\n";
const std::string kReplaced = "\xef\xbf\xbd";

std::string chunked(const std::string& body, std::size_t size) {
    std::string out;
    for (std::size_t at = 0; at < body.size(); at += size) {
        char line[32];
        std::snprintf(line, sizeof line, "%zX;ext=1\r\n", std::min(size, body.size() - at));
        out += line + body.substr(at, size) + "\r\n";
    }
    return out + "0\r\n\r\n";
}

}  // namespace

TEST_CASE("to_valid_utf8 replaces maximal subparts", "[unit]") {
    // Unicode 15, tables 3-8 to 3-11.
    const std::string r = kReplaced;
    CHECK(valid("\xc0\xaf\xe0\x80\xbf\xf0\x81\x82\x41") == r + r + r + r + r + r + r + r + "A");
    CHECK(valid("\xed\xa0\x80\xed\xbf\xbf\xed\xaf\x41") == r + r + r + r + r + r + r + r + "A");
    CHECK(valid("\xf4\x91\x92\x93\xff\x41\x80\xbf\x42") == r + r + r + r + r + "A" + r + r + "B");
    CHECK(valid("\xe1\x80\xe2\xf0\x91\x92\xf1\xbf\x41") == r + r + r + r + "A");
    CHECK(valid("\u00e4\u20ac\U0001F600 z") == "\u00e4\u20ac\U0001F600 z");
    std::int64_t bad = 0;
    CHECK(valid("a\xe2\x82", &bad) == "a" + r);
    CHECK(bad == 1);
    std::mt19937 random(7);
    for (int round = 0; round < 2000; ++round) {
        std::string bytes(random() % 12, '\0');
        for (char& c : bytes)
            c = static_cast<char>(random() % 3 ? 0x80 + random() % 128 : random() % 256);
        const std::string once = valid(bytes, &bad);
        CHECK(is_valid_utf8(once));
        CHECK((bad == 0) == is_valid_utf8(bytes));
    }
}

TEST_CASE("html_to_text keeps what a reader sees", "[unit]") {
    CHECK(html_to_text("<p>One  two\n three</p><p>four<br>five</p>") ==
          "One two three\nfour\nfive");
    CHECK(html_to_text("a<b>b</b>c <i> d</i>") == "abc d");
    CHECK(html_to_text("<head><title>T &amp; t</title><meta x><style>p{}</style>stray</head>"
                       "<body>text</body>") == "T & t\ntext");
    CHECK(html_to_text("<head><title>no end</title><body><p>text") == "no end\ntext");
    CHECK(html_to_text("a<script>if (a<b) '</p>'</script>b<style>x</style>"
                       "<noscript>n</noscript><template>t<template>u</template>v</template>c") ==
          "abc");
    CHECK(html_to_text("a<svg><title>icon</title></svg>b") == "ab");
    CHECK(html_to_text("a<!-- <p>x</p> -->b<!doctype html><?php x ?>c") == "abc");
    CHECK(html_to_text("<a title='a > b' href=\"x>y\">link</a>") == "link");
    CHECK(html_to_text("1 < 2 and 3 <4> 5 <") == "1 < 2 and 3 <4> 5 <");
    CHECK(html_to_text("<pre>  a\n    b\n\n\n\nc</pre>d  e") == "  a\n    b\n\nc\nd e");
    CHECK(html_to_text("<table><tr><td>a<td>b<tr><td>c</table>") == "a b\nc");
    CHECK(html_to_text("<li>same</li><li>same</li><li>other</li>") == "same\nother");
    CHECK(html_to_text("a<scr") == "a");
    CHECK(html_to_text("a<script>never closed <p>b") == "a");
    CHECK(html_to_text("a<noscript>never closed <p>b") == "anever closed\nb");
    CHECK(html_to_text("") == "");
}

TEST_CASE("html_to_text decodes character references", "[unit]") {
    CHECK(html_to_text("&lt;b&gt; &quot;&apos;&AMP;") == "<b> \"'&");
    CHECK(html_to_text("&eacute;&Uuml;&szlig;&yuml;&euro;&hellip;&mdash;&alpha;&rarr;") ==
          "\u00e9\u00dc\u00df\u00ff\u20ac\u2026\u2014\u03b1\u2192");
    CHECK(html_to_text("&#65;&#x42;&#X43;&#8217;&#146;&#x80;") == "ABC\u2019\u2019\u20ac");
    CHECK(html_to_text("&#0;&#xD800;&#1114112;&#99999999999999;") ==
          kReplaced + kReplaced + kReplaced + kReplaced);
    CHECK(html_to_text("a&nbsp;&nbsp;b &copy 2 &unknown; & &; &# &#x; AT&T ?a=1&copy=2") ==
          "a b \u00a9 2 &unknown; & &; &# &#x; AT&T ?a=1&copy=2");
    CHECK(html_to_text("&amp;lt;") == "&lt;");
}

TEST_CASE("html_to_text is linear and flat", "[unit]") {
    std::string deep, quotes, pres, opens;
    for (int i = 0; i < 100000; ++i) {
        deep += "<div><b>";
        quotes += "<a b=\"'>";
        pres += "<pre>";
        opens += "<noscript><svg><select>&";
    }
    CHECK(html_to_text(deep + "core") == "core");
    CHECK(html_to_text(pres + "core") == "core");
    html_to_text(quotes);
    html_to_text(opens);
    html_to_text(std::string(1000000, '<'));
    std::mt19937 random(11);
    const std::string alphabet = "<>/&;#x\"'=! -ab1\n\xc3\xa9";
    for (int round = 0; round < 3000; ++round) {
        std::string html;
        for (unsigned n = random() % 60; n > 0; --n) {
            static const char* const parts[] = {"<pre", "<script>", "</script", "<head>", "<title>",
                                                "<!--", "-->",      "<svg",     "&amp",   "&#"};
            html += random() % 3 ? std::string(1, alphabet[random() % alphabet.size()])
                                 : parts[random() % 10];
        }
        CHECK(is_valid_utf8(html_to_text(valid(html))));
    }
}

TEST_CASE("record_text undoes the codings of HTTP", "[unit]") {
    const std::string html = "<p>Some readable text.</p>";
    const std::string gz = deflate_bytes(html);
    const std::string text = "Some readable text.";
    const std::string chunk_header = "Transfer-Encoding: chunked\r\n";
    const std::string gzip_header = "content-encoding: GZIP\r\n";
    CHECK(response_text(kHtml, html) == text);
    CHECK(response_text(kHtml + chunk_header, chunked(html, 7)) == text);
    CHECK(response_text(kHtml + gzip_header, gz) == text);
    CHECK(response_text(kHtml + gzip_header + chunk_header, chunked(gz, 5)) == text);
    CHECK(response_text(kHtml + "Content-Encoding: deflate\r\n", deflate_bytes(html, 15)) == text);
    CHECK(response_text(kHtml + "Content-Encoding: deflate\r\n", deflate_bytes(html, -15)) == text);
    // Crawlers decode the body and keep the header.
    CHECK(response_text(kHtml + gzip_header + chunk_header, html) == text);
    // Cut bodies give what they hold and never fail.
    const std::string whole = chunked(deflate_bytes(text), 5);
    for (std::size_t size = 0; size < whole.size(); ++size)
        CHECK(text.starts_with(
            response_text(kHtml + gzip_header + chunk_header, whole.substr(0, size))));
    CHECK(response_text(kHtml + chunk_header, "FFFFFFFF\r\nabc") == "abc");
}

TEST_CASE("record_text picks pages and charsets", "[unit]") {
    const std::string pad(400, 'x');
    CHECK(response_text("Content-Type: text/html; charset=ISO-8859-1\r\n",
                        pad + "caf\xe9 \x93q\x94") == pad + "caf\u00e9 \u201cq\u201d");
    CHECK(response_text("Content-Type: text/html; charset=\"utf-8\"\r\n", "caf\u00e9") ==
          "caf\u00e9");
    CHECK(response_text(kHtml, "<meta charset=latin1>" + pad + "caf\xe9") == pad + "caf\u00e9");
    CHECK(
        response_text(kHtml, "<META http-equiv=x content='text/html; charset=windows-1252'>\xe9") ==
        "\u00e9");
    CHECK(response_text(kHtml, "caf\xe9") == "caf\u00e9");    // not UTF-8: windows-1252
    CHECK(response_text(kHtml, "caf\u00e9") == "caf\u00e9");  // UTF-8 by validity
    CHECK(response_text(kHtml, "\xef\xbb\xbfhi") == "hi");
    CHECK(response_text(kHtml, std::string("\xff\xfeh\0i\0", 6)) == "hi");
    CHECK(response_text("Content-Type: text/html; charset=shift_jis\r\n", "\x83\x65\x83\x58") ==
          "");
    // One bad byte in a hundred is the most that is taken.
    const std::string utf8 = "Content-Type: text/html; charset=utf-8\r\n";
    CHECK(response_text(utf8, std::string(199, 'x') + "\xff") == std::string(199, 'x') + kReplaced);
    CHECK(response_text(utf8, std::string(98, 'x') + "\xff\xff") == "");

    CHECK(response_text("Content-Type: text/plain\r\n", "a <b>\r\n\r\n\r\n c \r\n") ==
          "a <b>\n\n c");
    CHECK(response_text("Content-Type: image/png\r\n", "text") == "");
    CHECK(response_text("Content-Type: text/css\r\n", "text") == "");
    CHECK(response_text("", "<html>page") == "page");
    CHECK(response_text("", "binary") == "");
    CHECK(response_text(kHtml, "gone", "404 Not Found") == "");
    CHECK(response_text(kHtml, "moved", "301 Moved") == "");
    WarcRecord record;
    record.type = "request";
    record.body = http_response(kHtml, "text");
    CHECK(record_text(record) == "");
    record.type = "conversion";
    record.body = "A line.\r\nAnother, caf\u00e9.\n";
    CHECK(record_text(record) == "A line.\nAnother, caf\u00e9.");
    record.type = "response";
    record.body = "no http";
    CHECK(record_text(record) == "");
}

TEST_CASE("record_text reads real pages", "[unit]") {
    const std::string aut = shared_data("aut_warc/example.warc.gz");
    const std::string whirlwind = shared_data("commoncrawl_whirlwind/whirlwind.warc.gz");
    const std::string wet = shared_data("commoncrawl_whirlwind/whirlwind.warc.wet.gz");
    if (aut.empty() || whirlwind.empty() || wet.empty()) {
        WARN("skipped: aut_warc and commoncrawl_whirlwind are not in the shared data");
        return;
    }
    const auto text_of = [](const std::string& path) {
        std::string all;
        read_warc(path, [&](const WarcRecord& r) { all += record_text(r); });
        CHECK(is_valid_utf8(all));
        return all;
    };
    CHECK(text_of(aut).size() > 1000 * 1000);
    CHECK_THAT(text_of(aut), Catch::Contains("universal access to all knowledge") ||
                                 Catch::Contains("Internet Archive"));
    const std::string sentence = "Escopete ye un municipio d'a provincia de Guadalachara";
    CHECK_THAT(text_of(whirlwind), Catch::Contains(sentence));
    CHECK_THAT(text_of(wet), Catch::Contains(sentence));
    CHECK(text_of(wet).size() > 4000);
}
