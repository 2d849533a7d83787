#pragma once
#include <functional>
#include <string>
#include <vector>

#include "data/crawl/build_corpus.h"

namespace stoa {

/// The suffixes that are read, for messages: ".warc .wet .txt ...".
std::string readable_suffixes();

/// Files as given, directories walked in sorted order for files with a readable suffix.
/// errors: DataError (missing path, file of another kind, directory without a readable file)
std::vector<std::string> list_input_files(const std::vector<std::string>& inputs);

/// Calls `on_document` with the text (valid UTF-8) of every document of one file: a record of a
/// WARC or WET file, a page of .html, a line of .jsonl, a part of .txt of about 4000 bytes cut at a
/// blank line. Counts records, damage and notes in `report`; a damaged file never throws.
void read_documents(const std::string& path, BuildCorpusReport& report,
                    const std::function<void(std::string&&)>& on_document);

}  // namespace stoa
