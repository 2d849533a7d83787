"""Plots and tables of attention_quality, from the lines that it writes to stderr.

  attention_plots.py LINES... [--out FOLDER] [--fold FILE] [--table]

--out writes attention_quality.svg (accuracy against length, a panel for each task) and
attention_collapse.svg (the settings of --case beside their remedies); --fold writes one line for
each task, kind and case, with its seeds in lists, which is read like the lines themselves; --table
prints the means as Markdown. Python's standard library only.
"""
import argparse
import json

TIMES = ("1x", "2x", "4x", "8x")
KINDS = {"dense": "#222222", "tree": "#0072b2", "importance": "#009e73", "window": "#d55e00"}
TASKS = ("recall", "multi_needle", "needle", "selective_copy", "induction", "variable_tracking")
FIGURES = ("accuracy", "decoded", "bits", "last_quarter", "grammar")
WIDTH, HEIGHT, LEFT, TOP = 200, 130, 44, 24  # of a panel's axes, and the room before them

# Panels of attention_collapse.svg: (case, kind) with its name and colour.
COLLAPSE = (
    ("Tree: 32 tokens in leaves", (
        ("", "tree", "8 of 4", "#0072b2"),
        ("few_leaves", "tree", "4 of 8", "#e69f00"),
        ("fewer_leaves", "tree", "2 of 16", "#d55e00"))),
    ("Importance: 16 facts in what it keeps", (
        ("", "importance", "32 tokens", "#009e73"),
        ("eight_tokens", "importance", "8", "#d55e00"),
        ("eight_tokens", "tree", "8 of the tree", "#0072b2"))),
    ("A first layer that looks back", (
        ("", "dense", "dense", "#222222"),
        ("", "tree", "tree", "#0072b2"),
        ("no_look_back", "dense", "dense, without", "#e69f00"),
        ("no_look_back", "tree", "tree, without", "#d55e00"))),
)


def read(files):
    """{(task, kind, case): {figure: {name: [a value for each seed]}}}, seeds in order."""
    lines = []
    for file in files:
        with open(file, encoding="utf-8") as text:
            lines += [json.loads(line) for line in text if line.startswith('{"')]
    runs = {}
    for line in sorted((x for x in lines if "task" in x), key=lambda x: str(x.get("seed"))):
        run = runs.setdefault((line["task"], line["kind"], line.get("case", "")), {"seed": []})
        seeds = line["seed"] if isinstance(line["seed"], list) else [line["seed"]]
        run["seed"] += seeds
        for figure in FIGURES:
            for name, value in line.get(figure, {}).items():
                values = value if isinstance(value, list) else [value]
                run.setdefault(figure, {}).setdefault(name, []).extend(values)
    return runs


def fold(runs, file):
    def short(value):
        return round(value, 4) if isinstance(value, float) else value

    with open(file, "w", encoding="utf-8") as out:
        for (task, kind, case), run in sorted(runs.items()):
            line = {"task": task, "kind": kind, **({"case": case} if case else {})}
            line["seed"] = run["seed"]
            for figure in FIGURES:
                if figure in run:
                    line[figure] = {n: [short(x) for x in v] for n, v in run[figure].items()}
            out.write(json.dumps(line, separators=(",", ":")) + "\n")


def mean(values):
    return sum(values) / len(values)


def text(x, y, words, anchor="middle", size=11, colour="#222222", weight="normal"):
    return (f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" font-size="{size}" '
            f'font-weight="{weight}" fill="{colour}">{words}</text>')


def panel(x0, y0, title, lines, length):
    """Axes at (x0, y0) with `lines`: (colour, {times: values}); whiskers from least to most."""
    def x(i, shift=0.0):
        return x0 + 14 + i * (WIDTH - 28) / 3 + shift

    def y(v):
        return y0 + HEIGHT * (1 - v)

    out = [text(x0 + WIDTH / 2, y0 - 9, title, size=12, weight="bold")]
    for v in (0, 0.25, 0.5, 0.75, 1):
        out.append(f'<path d="M{x0},{y(v):g}h{WIDTH}" stroke="#dddddd"/>')
        out.append(text(x0 - 5, y(v) + 4, f"{v:g}", "end"))
    for i in range(4):
        out.append(text(x(i), y0 + HEIGHT + 15, f"{length << i:,}"))
    for n, (colour, values) in enumerate(lines):
        shift = 2.5 * (n - (len(lines) - 1) / 2)  # so that whiskers stand side by side
        points = [(x(i, shift), values[t]) for i, t in enumerate(TIMES) if t in values]
        path = " ".join(f"{px:.1f},{y(mean(v)):.1f}" for px, v in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        for px, v in points:
            out.append(f'<path d="M{px:.1f},{y(max(v)):.1f}V{y(min(v)):.1f}" stroke="{colour}"/>')
            out.append(f'<circle cx="{px:.1f}" cy="{y(mean(v)):.1f}" r="2.6" fill="{colour}"/>')
    return out


def legend(x0, y, entries, columns=4):
    out, x = [], x0
    for i, (colour, name) in enumerate(entries):
        if i and i % columns == 0:
            x, y = x0, y + 17
        out.append(f'<path d="M{x:g},{y:g}h18" stroke="{colour}" stroke-width="3"/>')
        out.append(text(x + 23, y + 4, name, "start"))
        x += 34 + 6.2 * len(name)
    return out


def write_svg(file, width, height, parts):
    with open(file, "w", encoding="utf-8") as out:
        out.write(f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
                  f'width="{width}" height="{height}" font-family="sans-serif">\n'
                  f'<rect width="{width}" height="{height}" fill="#ffffff"/>\n')
        out.write("\n".join(parts) + "\n</svg>\n")


def plot_quality(runs, file):
    step_x, step_y = WIDTH + LEFT + 16, HEIGHT + 56
    parts = legend(LEFT, 14, [(colour, kind) for kind, colour in KINDS.items()])
    parts.append(text(3 * step_x - 16, 18, "accuracy by tokens in a row; trained at 160; "
                      "least and most of the seeds", "end"))
    for i, task in enumerate(TASKS):
        lines = [(colour, runs[task, kind, ""]["accuracy"])
                 for kind, colour in KINDS.items() if (task, kind, "") in runs]
        parts += panel(LEFT + i % 3 * step_x, 30 + TOP + i // 3 * step_y,
                       task.replace("_", " "), lines, 160)
    write_svg(file, 3 * step_x, 30 + 2 * step_y, parts)


def plot_collapse(runs, file):
    step_x = WIDTH + LEFT + 60
    parts = []
    for i, (title, entries) in enumerate(COLLAPSE):
        found = [(c, name, runs["recall", kind, case]["accuracy"])
                 for case, kind, name, c in entries if ("recall", kind, case) in runs]
        x0 = LEFT + i * step_x
        parts += panel(x0, TOP, title, [(c, values) for c, _, values in found], 160)
        parts += legend(x0 - 20, TOP + HEIGHT + 32, [(c, name) for c, name, _ in found],
                        2 if len(found) > 3 else 3)
    write_svg(file, len(COLLAPSE) * step_x - 30, TOP + HEIGHT + 60, parts)


def cell(run, times, figure="accuracy"):
    values = run.get(figure, {}).get(times)
    return f"{mean(values):.3f} ({min(values):.3f})" if values else "-"


def table(runs):
    print("| mean (worst seed) | " + " | ".join(KINDS) + " | tree, decoded | "
          + " | ".join(f"{k} at 8 x" for k in KINDS if k != "window") + " |")
    print("|---" * (2 * len(KINDS) + 1) + "|")
    for task in TASKS:
        of = {kind: runs.get((task, kind, ""), {}) for kind in KINDS}
        cells = [cell(of[k], "1x") for k in KINDS] + [cell(of["tree"], "1x", "decoded")]
        cells += [cell(of[k], "8x") for k in KINDS if k != "window"]
        print(f"| {task.replace('_', ' ')} | " + " | ".join(cells) + " |")
    print("\n| code, bits per byte | 1 x | last quarter | 2 x | last quarter | grammar |")
    print("|---" * 6 + "|")
    for kind in KINDS:
        run = runs.get(("code", kind, ""), {})
        cells = [cell(run, t, f).split(" ")[0] for t in ("1x", "2x")
                 for f in ("bits", "last_quarter")]
        grammar = run.get("grammar", {})
        share = ", ".join(f"{100 * x:.1f}" for x in grammar.get("share", []))
        base = ", ".join(f"{100 * x:.1f}" for x in grammar.get("base_rate", [])[:1])
        print(f"| {kind} | " + " | ".join(cells) + f" | {share} of {base} |")
    print("\n| case | seeds | " + " | ".join(f"{160 << i:,}" for i in range(4)) + " |")
    print("|---" * 6 + "|")
    for (task, kind, case), run in sorted(runs.items()):
        if case:
            cells = [cell(run, times) for times in TIMES]
            print(f"| {case}, {kind} | {len(run['seed'])} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("lines", nargs="+")
    parser.add_argument("--out")
    parser.add_argument("--fold")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    all_runs = read(given.lines)
    if given.out:
        plot_quality(all_runs, f"{given.out}/attention_quality.svg")
        plot_collapse(all_runs, f"{given.out}/attention_collapse.svg")
    if given.fold:
        fold(all_runs, given.fold)
    if given.table:
        table(all_runs)
