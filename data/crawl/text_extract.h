#pragma once
#include <cstdint>
#include <string>
#include <string_view>

#include "data/crawl/warc_reader.h"

namespace stoa {

/// The readable text of a record as valid UTF-8, or "" when it has none: the body of a WET
/// conversion; of an HTTP response with an HTML or text payload the decoded body (chunked and gzip
/// undone, charset from header or <meta>: UTF-8 and Latin-1/windows-1252), with tags, scripts and
/// styles removed, block elements as line breaks, entities decoded, white space folded.
/// Error pages (status not 2xx), other charsets and pages with more than 1 % ill-formed bytes have
/// none.
std::string record_text(const WarcRecord& record);

/// The same for a decoded body and its Content-Type ("text/html; charset=...", lower case).
std::string page_text(std::string_view bytes, std::string_view content_type);

/// Readable text of UTF-8 HTML: one line per block, adjacent equal lines once, <pre> verbatim;
/// scripts, styles, form controls and the head except its title left out. Linear in the input,
/// whatever the depth.
std::string html_to_text(std::string_view html);
/// Replaces every ill-formed byte sequence by U+FFFD; `bad` counts them.
std::string to_valid_utf8(std::string_view bytes, std::int64_t& bad);

}  // namespace stoa
