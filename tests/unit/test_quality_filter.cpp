#include "data/crawl/quality_filter.h"
#include "data/crawl/text_extract.h"
#include "tests/support/catch.h"
#include "tests/support/crawl_files.h"

using namespace stoa;
using namespace stoa::test;

namespace {

std::string reason(std::string text) { return filter_document(text); }

std::string repeat(const std::string& s, int n) {
    std::string all;
    for (int i = 0; i < n; ++i)
        all += s;
    return all;
}

}  // namespace

TEST_CASE("filter_document keeps plain prose as it is", "[unit]") {
    std::string text = prose(1);
    const std::string before = text.substr(0, text.size() - 1);  // without the last line end
    CHECK(filter_document(text) == "");
    CHECK(text == before);
    // Wrapped prose: the short last line of a paragraph belongs to it.
    std::string wrapped =
        "It was the best of times, it was the worst of times, it was the age of\n"
        "wisdom, it was the age of foolishness, it was the epoch of belief, it was the\n"
        "epoch of incredulity, it was the season of Light, it was the season of\n"
        "Darkness.\n\nWe had everything before us, we had nothing before us, we were all\n"
        "going direct to Heaven, we were all going direct the other way, in short.\n";
    CHECK(filter_document(wrapped) == "");
    CHECK_THAT(wrapped, Catch::Contains("\nDarkness.\n\nWe had"));
}

TEST_CASE("filter_document drops menus and notices", "[unit]") {
    std::string page =
        "The keepers of the lighthouse and their logs\nHome\nNews\nAbout us\nContact\n"
        "Sign in\n" +
        prose(3) +
        "Home | News | Terms | Contact | Jobs\nThis site uses cookies to serve you "
        "better.\nPlease enable JavaScript to see this.\nShare\n"
        "Browse all our products\nRead the latest news\nContact the support team\n"
        "Questions asked every day\n";
    CHECK(filter_document(page) == "");
    CHECK_THAT(page,
               Catch::StartsWith("The keepers of the lighthouse and their logs\nIn the year"));
    for (const char* gone :
         {"Home", "Sign in", "cookies", "JavaScript", "Share", "Browse", "Questions"})
        CHECK_THAT(page, !Catch::Contains(gone));
}

TEST_CASE("filter_document counts words of a script without spaces", "[unit]") {
    std::string text;  // one long line; U+65E5 U+672C U+8A9E and an ellipsis now and then
    for (int i = 0; i < 300; ++i)
        text += i % 20 ? "\u65e5\u672c\u8a9e" + std::string(i % 7 ? "" : "\u3002") : "\u2026";
    CHECK(reason(text) == "");
}

TEST_CASE("filter_document names the rule", "[unit]") {
    CHECK(reason("") == "too_short");
    CHECK(reason("The cat sat on the mat.") == "too_short");
    CHECK(reason(repeat("Home\nNews\nContact us\n", 50)) == "too_short");  // nothing but a menu
    CHECK(reason(repeat("to a b of c d. ", 40)) == "mean_word_length");
    CHECK(reason(repeat("the and supercalifragilistic antidisestablishmentarianism. ", 30)) ==
          "mean_word_length");
    std::string table;
    for (int i = 0; i < 60; ++i)
        table +=
            "lighthouse keepers " + std::to_string(i * 37) + " " + std::to_string(i * 91) + ".\n";
    CHECK(reason(table) == "alphabetic_words");
    std::string list;
    for (int i = 0; i < 80; ++i)
        list += "blue" + std::string(1, char('a' + i % 26)) + " chair" + char('a' + i / 26) + " ";
    CHECK(reason(list) == "stop_words");
    CHECK(reason(repeat("buy the best and cheapest. ", 40)) == "repeated_phrases");
    std::string tags, code, dots;
    for (int i = 0; i < 12; ++i) {
        const std::string n = std::to_string(i);
        tags += "keeper" + n + " of #sea" + n + " and #ship" + n + " was there. ";
        code += "<item the=\"" + n + "\"><b>and</b><i>was</i></item> " + prose(i, 1);
        dots += "boat" + n + "... near" + n + "... the sea" + n + " and of" + n + "...\n";
    }
    CHECK(reason(code) == "markup");
    CHECK(reason(tags) == "symbols");
    CHECK(reason(dots) == "symbols");
    std::string trailing;
    for (int i = 0; i < 12; ++i) {
        const std::string n = std::to_string(i);
        trailing += "boat" + n + " was near the sea" + n + " and of port" + n + " with sail" + n +
                    " and mast" + n + " there in fog" + n + "...\n";
    }
    CHECK(reason(trailing) == "ellipsis_lines");
    std::string twice;
    for (int i = 0; i < 8; ++i)
        twice += prose(i, 1) + prose(i + 100, 1) + prose(i, 1);
    CHECK(reason(twice) == "duplicate_lines");
    std::string bullets;
    for (int i = 0; i < 12; ++i)
        bullets += "- " + prose(i, 1);
    CHECK(reason(bullets) == "bullets");
}

TEST_CASE("filter_document does not insist on English", "[unit]") {
    const std::string languages = shared_data("udhr/declaration");
    if (languages.empty()) {
        WARN("skipped: udhr is not in the shared data");
        return;
    }
    int kept = 0, files = 0;
    std::string refused;
    for (const auto& entry : fs::directory_iterator(languages)) {
        std::string text = page_text(read_text(entry.path().string()), "text/plain");
        const std::string why = filter_document(text);
        ++files;
        kept += why.empty();
        if (!why.empty()) refused += entry.path().filename().string() + ": " + why + "\n";
    }
    INFO(refused);
    CHECK(files > 20);
    CHECK(kept * 10 >= files * 8);
}
