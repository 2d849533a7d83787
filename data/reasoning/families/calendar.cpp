// "What date is 45 days after 2023-11-20?": month by month.
#include <fmt/format.h>

#include <algorithm>

#include "data/reasoning/exact.h"
#include "data/reasoning/families/families.h"
#include "data/reasoning/scan.h"

namespace stoa::families {
namespace {

struct Date {
    std::int64_t year = 0, month = 0, day = 0;
};

bool leap(std::int64_t y) { return (y % 4 == 0 && y % 100 != 0) || y % 400 == 0; }

std::int64_t days_in_month(std::int64_t year, std::int64_t month) {
    constexpr std::int64_t kDays[] = {31, 28, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31};
    return month == 2 && leap(year) ? 29 : kDays[month - 1];
}

/// Days since 1 March of year 0, Gregorian: years begin in March, so that the leap day is the last
/// one, and (153 m + 2) / 5 counts the days of the m months before. No table.
std::int64_t day_number(const Date& d) {
    const std::int64_t m = (d.month + 9) % 12, y = d.month <= 2 ? d.year - 1 : d.year;
    return 365 * y + y / 4 - y / 100 + y / 400 + (153 * m + 2) / 5 + d.day - 1;
}

/// YYYY-MM-DD with exactly these digits, a real day of the years 1000..9999.
bool parse_date(Scanner& s, Date& d) {
    const auto two = [&](std::int64_t& v) {
        const bool zero = s.literal("0");
        return s.natural(v) && (zero ? v < 10 : v >= 10 && v < 100);
    };
    return s.natural(d.year) && d.year >= 1000 && d.year <= 9999 && s.literal("-") &&
           two(d.month) && s.literal("-") && two(d.day) && d.month >= 1 && d.month <= 12 &&
           d.day >= 1 && d.day <= days_in_month(d.year, d.month);
}

bool parse_calendar(Text question, std::int64_t& days, Date& start) {
    Scanner s(question);
    return s.literal("What date is ") && s.natural(days) && s.literal(" days after ") &&
           parse_date(s, start) && s.literal("?") && s.at_end() && days >= 1 && days <= 100000;
}

std::string date_text(const Date& d) {
    return fmt::format("{:04}-{:02}-{:02}", d.year, d.month, d.day);
}

}  // namespace

// To 40 days per level, in years that widen from 2000..2029 to 1800..2199.
void generate_calendar(std::int64_t difficulty, Draws& draws, ReasoningSample& sample) {
    Date date;
    date.year = difficulty < 4 ? draws.between(2000, 2029) : draws.between(1800, 2199);
    date.month = draws.between(1, 12);
    date.day = draws.between(1, days_in_month(date.year, date.month));
    std::int64_t left = draws.between(2, 40 * difficulty);
    sample.question = fmt::format("What date is {} days after {}?", left, date_text(date));
    while (left > 0) {
        const std::int64_t in_month = days_in_month(date.year, date.month) - date.day;
        if (left <= in_month) {
            date.day += left;
            sample.steps.push_back(fmt::format("{} days to {}", left, date_text(date)));
            left = 0;
            break;
        }
        const std::int64_t taken = in_month + 1;
        date = date.month == 12 ? Date{date.year + 1, 1, 1} : Date{date.year, date.month + 1, 1};
        sample.steps.push_back(fmt::format("{} days to {}, {} - {} = {} left", taken,
                                           date_text(date), left, taken, left - taken));
        left -= taken;
    }
    sample.answer = date_text(date);
    if (sample.steps.back().ends_with(" left"))
        sample.steps.push_back("0 days to " + sample.answer);
}

bool verify_calendar(Text question, Text answer, std::string& why) {
    std::int64_t days = 0;
    Date start, end;
    if (!parse_calendar(question, days, start))
        return refuse(why, "the question is not about a date");
    while (answer.starts_with(' '))
        answer.remove_prefix(1);
    Scanner s(answer);
    if (!parse_date(s, end) || s.rest().find_first_not_of(' ') != Text::npos)
        return refuse(why, "the answer is not a date YYYY-MM-DD");
    const std::int64_t distance = day_number(end) - day_number(start);
    return distance == days ||
           refuse(why, fmt::format("that is {} days later, not {}", distance, days));
}

// Each step moves by the days it names and counts what is left.
bool check_calendar(const ReasoningSample& sample, std::string& why) {
    std::int64_t left = 0;
    Date date;
    if (!parse_calendar(sample.question, left, date)) return refuse(why, "not about a date");
    for (std::size_t i = 0; i < sample.steps.size(); ++i) {
        Scanner s(sample.steps[i]);
        std::int64_t taken = 0, before = 0, again = 0, after = 0;
        Date next;
        bool ok = s.natural(taken) && s.literal(" days to ") && parse_date(s, next) &&
                  day_number(next) - day_number(date) == taken;
        if (ok && i + 1 < sample.steps.size())
            ok = s.literal(", ") && s.natural(before) && s.literal(" - ") && s.natural(again) &&
                 s.literal(" = ") && s.natural(after) && s.literal(" left") && before == left &&
                 again == taken && after == before - again;
        if (!ok || !s.at_end()) return refuse(why, fmt::format("step {} is wrong", i + 1));
        left -= taken;
        date = next;
    }
    Scanner s(sample.answer, true);
    return (left == 0 && s.literal(date_text(date)) && s.at_end()) ||
           refuse(why, "the steps do not end in the answer");
}

}  // namespace stoa::families
