#include <map>
#include <random>

#include "data/crawl/warc_reader.h"
#include "kernels/core/error.h"
#include "tests/support/catch.h"
#include "tests/support/crawl_files.h"

using namespace stoa;
using namespace stoa::test;

namespace {

struct Read {
    std::vector<WarcRecord> records;
    WarcCounts counts;
    std::string error;  // of a file without records
    std::map<std::string, int> types;
};

Read read_file(const std::string& path) {
    Read read;
    try {
        read.counts = read_warc(path, [&](const WarcRecord& r) {
            read.records.push_back(r);
            ++read.types[r.type];
        });
    } catch (const DataError& e) {
        read.error = e.what();
    }
    return read;
}

Read read_bytes(const TempDir& dir, const std::string& bytes) {
    write_text(dir / "file.warc.gz", bytes);
    return read_file(dir / "file.warc.gz");
}

const std::vector<std::string> kBodies = {"first body\n", std::string(1500, 'x') + "\nWARC\n", "",
                                          "last body, no line end"};

std::vector<std::string> sample_records() {
    std::vector<std::string> records;
    for (const std::string& body : kBodies)
        records.push_back(warc_record("response", body, "<http://example.org/a b>", "1.1"));
    return records;
}

std::string join(const std::vector<std::string>& parts, bool member_each = false) {
    std::string all;
    for (const std::string& part : parts)
        all += member_each ? deflate_bytes(part) : part;
    return all;
}

void check_all_there(const Read& read) {
    REQUIRE(read.error.empty());
    REQUIRE(read.records.size() == kBodies.size());
    for (std::size_t i = 0; i < kBodies.size(); ++i) {
        CHECK(read.records[i].body == kBodies[i]);
        CHECK(read.records[i].type == "response");
        CHECK(read.records[i].uri == "http://example.org/a b");
        CHECK_FALSE(read.records[i].truncated);
    }
    CHECK(read.counts.records == std::int64_t(kBodies.size()));
    CHECK(read.counts.damaged == 0);
    CHECK(read.counts.notes.empty());
}

/// Whole records must be the right ones, in order, and a cut one a prefix.
void check_prefix(const Read& read) {
    std::size_t next = 0;
    for (const WarcRecord& r : read.records) {
        REQUIRE(next < kBodies.size());
        const std::string& body = kBodies[next++];
        CHECK((r.truncated ? body.substr(0, r.body.size()) == r.body : body == r.body));
    }
    CHECK((read.records.empty() == !read.error.empty()));
}

}  // namespace

TEST_CASE("read_warc reads every kind of container", "[unit]") {
    const TempDir dir;
    check_all_there(read_bytes(dir, join(sample_records(), true)));
    check_all_there(read_bytes(dir, deflate_bytes(join(sample_records()))));
    check_all_there(read_bytes(dir, join(sample_records())));
    // A record boundary inside a member, zero padding between members, an empty member.
    const std::string all = join(sample_records());
    check_all_there(read_bytes(dir, deflate_bytes(all.substr(0, 700)) + std::string(100, '\0') +
                                        deflate_bytes("") + deflate_bytes(all.substr(700))));
}

TEST_CASE("read_warc reads line ends, folded and extra headers", "[unit]") {
    const TempDir dir;
    const auto read = read_bytes(dir,
                                 "WARC/0.18\nwarc-type: Conversion\nX-Extra: a\n b\nno colon here\n"
                                 "Content-Type: text/plain\ncontent-length: 4\n\nbody\n\n");
    REQUIRE(read.records.size() == 1);
    CHECK(read.records[0].type == "conversion");
    CHECK(read.records[0].body == "body");
    CHECK(read.records[0].content_type == "text/plain");
    CHECK(read.records[0].headers[1] == std::pair<std::string, std::string>("X-Extra", "a b"));
}

TEST_CASE("read_warc takes what a file cut at any byte holds", "[unit]") {
    const TempDir dir;
    std::vector<std::string> records = sample_records();
    for (const std::string& bytes :
         {join(records, true), join(records), deflate_bytes(join(records))}) {
        std::size_t least = 0;
        for (std::size_t size = 0; size < bytes.size(); ++size) {
            CAPTURE(size, bytes.size());
            const Read read = read_bytes(dir, bytes.substr(0, size));
            check_prefix(read);
            CHECK(read.records.size() >= least);  // more bytes never give less
            least = read.records.size();
            for (std::size_t i = 0; i + 1 < read.records.size(); ++i)
                CHECK_FALSE(read.records[i].truncated);
        }
        CHECK(least == kBodies.size());
    }
}

TEST_CASE("read_warc resynchronises at the next member", "[unit]") {
    const TempDir dir;
    std::vector<std::string> members;
    for (const std::string& record : sample_records())
        members.push_back(deflate_bytes(record));

    SECTION("damage inside a member costs that record alone") {
        for (std::size_t i = 0; i < members.size(); ++i) {
            for (const std::size_t at : {std::size_t{0}, std::size_t{15}, members[i].size() - 6}) {
                auto damaged = members;
                damaged[i][at] = static_cast<char>(damaged[i][at] ^ 0x55);
                CAPTURE(i, at);
                const Read read = read_bytes(dir, join(damaged));
                REQUIRE(read.records.size() == members.size() - 1);
                CHECK(read.counts.damaged + std::int64_t(read.counts.notes.size()) >= 1);
                for (std::size_t k = 0, next = 0; k < kBodies.size(); ++k)
                    if (k != i) CHECK(read.records[next++].body == kBodies[k]);
            }
        }
    }
    SECTION("a member cut short and another appended") {
        const Read read =
            read_bytes(dir, members[0] + members[1].substr(0, members[1].size() / 2) + members[3]);
        REQUIRE(read.records.size() == 2);
        CHECK(read.records[1].body == kBodies[3]);
        CHECK(read.counts.damaged == 1);
    }
    SECTION("junk between members") {
        const Read read = read_bytes(dir, members[0] + "\x1f\x8b\x08 junk" + members[3]);
        REQUIRE(read.records.size() == 2);
        CHECK(read.counts.damaged == 1);
    }
}

TEST_CASE("read_warc keeps the records before damage in one long member", "[unit]") {
    const TempDir dir;
    std::string all;
    for (int i = 0; i < 40; ++i)
        all += warc_record("conversion", prose(i));
    std::string bytes = deflate_bytes(all);
    bytes[bytes.size() - 6] ^= 1;  // its checksum: the last record cannot be trusted
    Read read = read_bytes(dir, bytes);
    CHECK(read.records.size() == 39);
    CHECK(read.counts.damaged == 1);
    // Half the stream, then what deflate cannot be.
    bytes = deflate_bytes(all).substr(0, bytes.size() / 2) + std::string(400, '\xff');
    read = read_bytes(dir, bytes);
    CHECK(read.records.size() >= 5);
    for (std::size_t i = 0; i + 1 < read.records.size(); ++i)
        CHECK(read.records[i].body == prose(int(i)));
}

TEST_CASE("read_warc survives a wrong Content-Length", "[unit]") {
    const TempDir dir;
    const auto with_length = [](const std::string& body, const std::string& length) {
        return "WARC/1.0\r\nWARC-Type: response\r\nContent-Length: " + length + "\r\n\r\n" + body +
               "\r\n\r\n";
    };
    const std::string good = with_length("good", "4");
    for (const std::string length : {"1", "30", "60", "5000", "99999999999", "-3", "4x", ""}) {
        CAPTURE(length);
        const Read read = read_bytes(dir, good + with_length("some words", length) + good + good);
        CHECK(read.counts.damaged == 1);
        REQUIRE(read.records.size() >= 3);
        CHECK(read.records[0].body == "good");
        CHECK(read.records[read.records.size() - 2].body == "good");
        CHECK(read.records.back().body == "good");
    }
}

TEST_CASE("read_warc survives random damage", "[unit]") {
    const TempDir dir;
    std::mt19937 random(20240521);
    const std::string plain = join(sample_records()), members = join(sample_records(), true);
    for (int round = 0; round < 1500; ++round) {
        std::string bytes = round % 2 ? plain : members;
        for (unsigned flips = 1 + random() % 8; flips > 0; --flips) {
            const std::size_t at = random() % bytes.size();
            bytes[at] = static_cast<char>(bytes[at] ^ (1 << random() % 8));
        }
        if (random() % 4 == 0) bytes.erase(random() % bytes.size(), random() % 50);
        const Read read = read_bytes(dir, bytes);
        CHECK(read.records.size() <= 2 * kBodies.size());
        CHECK(read.records.empty() == !read.error.empty());
    }
}

TEST_CASE("read_warc stays linear on hostile input", "[unit]") {
    const TempDir dir;
    std::string headers, lengths;
    for (int i = 0; i < 20000; ++i) {
        headers += "WARC/1.0\r\n";
        lengths += "WARC/1.0\r\nContent-Length: 70000000\r\n\r\n";
    }
    CHECK(read_bytes(dir, headers).records.empty());
    // Each length reaches past the next record; going back for all of them would be quadratic.
    const Read read = read_bytes(dir, lengths);
    CHECK(read.records.size() >= 100);
    CHECK(read.records.size() < 1000);
}

TEST_CASE("read_warc caps a record and reads on", "[unit]") {
    const TempDir dir;
    const std::size_t cap = std::size_t{64} << 20;
    const Read read =
        read_bytes(dir, deflate_bytes(warc_record("response", std::string(cap + 9, 'a')) +
                                      warc_record("response", "next")));
    REQUIRE(read.records.size() == 2);
    CHECK(read.records[0].body.size() == cap);
    CHECK(read.records[1].body == "next");
    REQUIRE(read.counts.notes.size() == 1);
    CHECK_THAT(read.counts.notes[0], Catch::Contains("cut to"));
}

TEST_CASE("read_warc says what a file without records is", "[unit]") {
    const TempDir dir;
    CHECK_THAT(read_file(dir / "absent.warc").error, Catch::Contains("cannot open"));
    CHECK_THAT(read_file(dir.path).error, Catch::Contains(dir.path));  // a directory
    CHECK_THAT(read_bytes(dir, "").error, Catch::Contains("no WARC record"));
    CHECK_THAT(read_bytes(dir, "hello\n").error, Catch::Contains("no WARC record"));
    CHECK_THAT(
        read_bytes(dir, deflate_bytes("filedesc://x.arc 0.0.0.0 2008 text/plain 76\n")).error,
        Catch::Contains("ARC files"));
}

TEST_CASE("read_warc reads real crawl files", "[unit]") {
    const std::string aut = shared_data("aut_warc/example.warc.gz");
    const std::string misc = shared_data("warc_misc");
    if (aut.empty() || misc.empty()) {
        WARN("skipped: aut_warc and warc_misc are not in the shared data");
        return;
    }
    const Read example = read_file(aut);
    CHECK(example.records.size() == 822);
    CHECK(example.types ==
          std::map<std::string, int>{
              {"metadata", 261}, {"request", 261}, {"response", 299}, {"warcinfo", 1}});
    CHECK(example.counts.damaged == 0);
    // Records that are there whole, and whether the file is sound.
    const std::map<std::string, std::pair<std::size_t, bool>> expected = {
        {"cc_net/sample.warc.txt", {4, false}},
        {"ia-web-commons/IAH-urls-wget.warc.gz", {36, true}},
        {"ia-web-commons/link-extraction-test.warc", {10, true}},
        {"ia-web-commons/multiple-headers.warc", {1, true}},
        {"jwarc/gzip_extra_sl.warc.gz", {1, true}},
        {"resiliparse/block-sized-records.warc.gz", {3, true}},
        {"resiliparse/clipped.warc.gz", {1, false}},
        {"resiliparse/clueweb-quirk.warc.gz", {30, true}},
        {"resiliparse/warcfile.warc.gz", {50, true}},
        {"warcio/example-bad-non-chunked.warc.gz", {6, true}},
        {"warcio/example-trunc.warc", {4, false}},
        {"warcio/example-wrong-chunks.warc.gz", {2, true}},
        {"warcio/example.warc", {6, true}},
        {"warcio/example.warc.gz", {6, true}}};
    for (const auto& [name, what] : expected) {
        CAPTURE(name);
        const Read read = read_file(misc + "/" + name);
        CHECK(read.records.size() == what.first);
        CHECK((read.counts.notes.empty() && read.counts.damaged == 0) == what.second);
    }
    for (const auto& entry : fs::recursive_directory_iterator(misc))
        if (entry.is_regular_file()) read_file(entry.path().string());  // none may crash
    CHECK_THAT(read_file(misc + "/warcio/example.arc.gz").error, Catch::Contains("ARC files"));
    CHECK_THAT(read_file(misc + "/ia-web-commons/double-single-inflate-error.gz").error,
               Catch::Contains("no WARC record"));
}
