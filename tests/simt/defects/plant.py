#!/usr/bin/env python3
"""Writes copies of kernel sources with their planted defects (README.md in this folder).

plant.py --tree TREE --out FOLDER CATALOGUE.toml...   writes FOLDER/<path below src/ or tests/>
plant.py --tree TREE --out FOLDER --list CATALOGUE... prints "source;copy" per file, writes nothing
"""
import argparse
import pathlib
import sys
import tomllib

KEYS = {"number", "file", "what", "found_by", "within", "original", "planted"}


def fail(text):
    sys.exit(f"plant.py: {text}")


def place(text, part, where):
    """The one place of part in text."""
    if text.count(part) != 1:
        fail(f"{where}: {text.count(part)} times in the source, must be once: {part.strip()!r}")
    return text.index(part)


def switch(defect, here):
    """C++ that is `original`, or `planted` while the defect is on. `original` keeps its lines; lines
    that `planted` has more are taken back by `here`, which names the line of the source."""
    original, planted = defect["original"], defect["planted"]
    on = f"::longnet::simt::bug == {defect['number']}"
    back = f"\n{here}\n" if "\n" in planted else " "
    if original.rstrip().endswith((";", "}")):
        return f"{{ if ({on}) {{ {planted} }}{back}else {{ {original} }} }}"
    return f"({on} ? ({planted}){back}: ({original}))"


def planted_copy(tree, path, defects):
    source = (tree / path).read_text()
    spans = []
    for defect in defects:
        where = f"{path}: defect {defect['number']}"
        within = defect.get("within", defect["original"])
        begin = place(source, within, where) + place(within, defect["original"], where)
        here = f'#line {source.count(chr(10), 0, begin) + 1} "{path}"'
        spans.append((begin, begin + len(defect["original"]), switch(defect, here), where))
    spans.sort()
    for (_, end, _, first), (begin, _, _, second) in zip(spans, spans[1:]):
        if begin < end:
            fail(f"{first} and {second} change the same text")
    parts, at = [f'#line 1 "{path}"\n'], 0
    for begin, end, text, _ in spans:
        parts += [source[at:begin], text]
        at = end
    return "".join(parts) + source[at:]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--tree", type=pathlib.Path, required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--list", action="store_true")
    parser.add_argument("catalogues", type=pathlib.Path, nargs="+")
    options = parser.parse_args()
    files = {}
    for catalogue in options.catalogues:
        try:
            entries = tomllib.loads(catalogue.read_text())["defect"]
        except (tomllib.TOMLDecodeError, KeyError) as error:
            fail(f"{catalogue}: {error}")
        for defect in entries:
            if not KEYS - {"within"} <= set(defect) <= KEYS:
                fail(f"{catalogue}: defect {defect.get('number')}: keys are {', '.join(sorted(KEYS))}")
            files.setdefault(defect["file"], []).append(defect)
    for path, defects in files.items():
        copy = options.out / path.split("/", 1)[1]
        if options.list:
            print(f"{options.tree / path};{copy}")
            continue
        text = planted_copy(options.tree, path, defects)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if not copy.exists() or copy.read_text() != text:
            copy.write_text(text)


main()
