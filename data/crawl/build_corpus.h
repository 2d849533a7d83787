#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

namespace stoa {

struct BuildCorpusOptions {
    std::vector<std::string> inputs;  // WET/WARC (.gz or not), .txt(.gz), .jsonl(.gz) with "text"
    std::string out_dir;              // receives tokenizer.json (if trained here) and the shards
    std::string tokenizer;            // existing tokenizer.json; empty = train one here
    std::int64_t vocab_size = 4096;   // when training
    double holdout = 0.01;            // share of documents, chosen by the hash of their text
    std::int64_t shard_tokens = 64 << 20;
    bool filter = true;
};

struct BuildCorpusReport {
    std::int64_t files = 0, records = 0, damaged = 0, documents = 0, duplicates = 0;
    std::map<std::string, std::int64_t> refused;  // reason code -> documents
    std::int64_t text_bytes = 0, train_tokens = 0, holdout_tokens = 0, train_documents = 0,
                 holdout_documents = 0;
    std::string tokenizer_path;
    std::vector<std::string> notes;
};

/// Crawl files -> text -> filter -> exact dedup by hash -> BPE -> train-*.h5 and holdout-*.h5.
/// The result is a pure function of the inputs and options. At least one document goes to each
/// split when there are two or more. errors: DataError (missing file, no usable document,
/// unwritable directory)
BuildCorpusReport build_corpus(const BuildCorpusOptions& options);

}  // namespace stoa
