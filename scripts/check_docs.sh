#!/usr/bin/env bash
# Compares the Markdown files with the tree they describe.
#   scripts/check_docs.sh [ROOT]     default: the project this script is in
# Fails, with file and line, for each of these:
# - a relative link names no file, or no heading of a Markdown file;
# - a path in backquotes, such as `src/core/log.h`, names no file or folder (* and ? are allowed);
# - a code block after a line <!-- quote: PATH --> is not in that file. Its lines must follow each other there
#   (indentation aside); a line "..." in the block skips some;
# - a comment under src/ names a file of src/, docs/ or tests/ that does not exist;
# - docs/figures/X.svg differs from the output of docs/figures/make_X.py.
# External links are not followed.
set -euo pipefail
shopt -s nullglob
cd "${1:-$(dirname "$0")/..}"
exec python3 - *.md docs/*.md docker/*.md <<'PYTHON'
import glob
import os
import re
import subprocess
import sys

problems = []
links = quotes = paths = figures = 0
FOLDERS = 'src|tests|scripts|docs|configs|bench|cmake|docker|examples'


def fence_of(line):
    """The fence that a line opens or closes a code block with, or nothing."""
    match = re.match(r'\s*(```+|~~~+)', line)
    return match.group(1) if match else None


def split(path):
    """Lines outside of code blocks, as (number, text), and the blocks, as (number, quoted file, lines)."""
    prose, blocks = [], []
    fence = source = None
    with open(path, encoding='utf-8') as file:
        for number, line in enumerate(file.read().splitlines(), 1):
            mark = fence_of(line)
            if fence is None and mark:
                fence = mark
                blocks.append((number, source, []))
                source = None
            elif fence is not None:
                if mark and mark.startswith(fence):
                    fence = None
                else:
                    blocks[-1][2].append(line.strip())
            else:
                quote = re.fullmatch(r'\s*<!-- quote: (\S+) -->\s*', line)
                if quote:
                    source = quote.group(1)
                elif line.strip():
                    if source is not None:
                        problems.append(f'{path}:{number}: a code block must follow "quote: {source}"')
                    source = None
                prose.append((number, line))
    if fence is not None:
        problems.append(f'{path}: a code block is not closed')
    if source is not None:
        problems.append(f'{path}: no code block follows "quote: {source}"')
    return prose, blocks


def anchors(path):
    """What "#..." may name in a Markdown file."""
    found = set()
    for _, line in split_quietly(path):
        heading = re.match(r'#+\s+(.*)', line)
        if heading:
            text = re.sub(r'[^\w\- ]', '', heading.group(1).lower())
            found.add(text.strip().replace(' ', '-'))
    return found


def split_quietly(path):
    kept = len(problems)
    prose, _ = split(path)
    del problems[kept:]
    return prose


def check_link(path, number, target):
    file, _, anchor = target.partition('#')
    place = os.path.normpath(os.path.join(os.path.dirname(path), file)) if file else path
    if not os.path.exists(place):
        problems.append(f'{path}:{number}: link to {target}: there is no {place}')
    elif anchor and place.endswith('.md') and anchor not in anchors(place):
        problems.append(f'{path}:{number}: link to {target}: no heading #{anchor} in {place}')


def find(lines, wanted, begin):
    """The end of the first run of `wanted` in lines[begin:], or -1."""
    for at in range(begin, len(lines) - len(wanted) + 1):
        if lines[at:at + len(wanted)] == wanted:
            return at + len(wanted)
    return -1


def check_quote(path, number, source, block):
    if not os.path.isfile(source):
        problems.append(f'{path}:{number}: quotes {source}, which is no file')
        return
    with open(source, encoding='utf-8') as file:
        lines = [line.strip() for line in file.read().splitlines()]
    runs, place = [[]], 0
    for line in block:
        if line == '...':
            runs.append([])
        else:
            runs[-1].append(line)
    runs = [run for run in runs if run]
    if not runs:
        problems.append(f'{path}:{number}: the quote of {source} is empty')
    for run in runs:
        place = find(lines, run, place)
        if place < 0:
            alone = [line for line in run if line not in lines]
            what = f'"{alone[0]}"' if alone else f'the lines from "{run[0]}" on, in this order'
            problems.append(f'{path}:{number}: {source} does not hold {what}')
            return


def exists(path, near=''):
    """Whether a path is in the tree: from its root, from src/ as includes are, or next to the file that names it."""
    return any(glob.glob(os.path.join(base, path)) for base in ('', 'src', near))


def check_path(path, number, word):
    global paths
    if re.match(rf'(?:{FOLDERS})/[^<>{{}}]*$', word):
        paths += 1
        if not exists(word.rstrip('.,:;')):
            problems.append(f'{path}:{number}: `{word}` does not exist')


def check_comments():
    """Paths of files in the comments of sources."""
    global paths
    for folder, _, names in os.walk('src'):
        for path in (os.path.join(folder, name) for name in names if re.search(r'\.(h|inc|cpp|cu)$', name)):
            with open(path, encoding='utf-8') as file:
                for number, line in enumerate(file, 1):
                    comment = line.partition('//')[2]
                    for word in re.findall(r'(?<![\w/.*-])(?:[a-z_0-9]+/)+\w+\.(?:h|inc|cpp|cu|md|sh|py|txt)\b', comment):
                        paths += 1
                        if not exists(word, folder):
                            problems.append(f'{path}:{number}: {word} does not exist')


def check_figures():
    global figures
    for picture in sorted(glob.glob('docs/figures/*.svg')):
        script = os.path.join('docs/figures', 'make_' + os.path.basename(picture)[:-len('.svg')] + '.py')
        figures += 1
        if not os.path.isfile(script):
            problems.append(f'{picture}: there is no {script}')
            continue
        made = subprocess.run([sys.executable, script], capture_output=True, check=True).stdout
        with open(picture, 'rb') as file:
            if file.read() != made:
                problems.append(f'{picture}: differs from the output of {script}; run {script} > {picture}')


check_comments()
check_figures()
for path in sys.argv[1:]:
    prose, blocks = split(path)
    for number, line in prose:
        for word in re.findall(r'`([^`\s]+)`', line):
            check_path(path, number, word)
        line = re.sub(r'`[^`]*`', '', line)
        for target in re.findall(r'\]\(([^()\s]+)\)', line):
            if not re.match(r'[a-z]+:', target):
                links += 1
                check_link(path, number, target)
    for number, source, block in blocks:
        if source is not None:
            quotes += 1
            check_quote(path, number, source, block)

for problem in problems:
    print(problem, file=sys.stderr)
if not links:
    sys.exit('no relative link found: is this the right folder?')
print(f'{len(sys.argv) - 1} documents: {links} links, {paths} paths, {quotes} quotes, {figures} figures, '
      f'{len(problems)} problems')
sys.exit(1 if problems else 0)
PYTHON
