#!/usr/bin/env python3
"""Draws dilated_rows.svg: which rows two heads keep in three branches, on four ranks, and which of them a query needs.

    docs/figures/make_dilated_rows.py > docs/figures/dilated_rows.svg

Standard library only; the output depends on nothing but this file. scripts/check_docs.sh compares it with the
committed picture.
"""
RANKS = 4
LOCAL = 8                                  # L, tokens of a rank
TOKENS = RANKS * LOCAL                     # N
BRANCHES = [(8, 1), (16, 2), (32, 4)]      # (w, r)
HEADS = 2
QUERY = 28                                 # the highlighted query token, of head 0

CELL, ROW = 24, 22                         # width and height of a token's cell, pixels
LEFT, TOP, BAND, RIGHT = 112, 58, 106, 14
WIDTH = LEFT + TOKENS * CELL + RIGHT
HEIGHT = TOP + len(BRANCHES) * BAND + 34

STYLE = """
  text { font: 13px system-ui, sans-serif; fill: #1f2328; }
  .quiet { fill: #59636e; }
  .strong { font-weight: 600; }
  .cell { fill: none; stroke: #d1d9e0; }
  .kept { fill: #c8d1da; stroke: #818b98; }
  .own { fill: #2f81c7; stroke: #1b5e97; }
  .received { fill: #e08a2c; stroke: #a85f12; }
  .query { fill: none; stroke: #cf222e; stroke-width: 3; }
  .rank { stroke: #59636e; stroke-dasharray: 4 4; }
  .segment { fill: none; stroke: #59636e; }
  @media (prefers-color-scheme: dark) {
    text { fill: #f0f6fc; }
    .quiet { fill: #9198a1; }
    .cell { stroke: #3d444d; }
    .kept { fill: #59636e; stroke: #818b98; }
    .own { fill: #4aa3ee; stroke: #8fc7f7; }
    .received { fill: #e9a04f; stroke: #f5c896; }
    .query { stroke: #ff7b72; }
    .rank, .segment { stroke: #9198a1; }
  }
"""


def x_of(token):
    return LEFT + token * CELL


def text(x, y, words, kind='', anchor='middle'):
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}"' + (f' class="{kind}"' if kind else '') + f'>{words}</text>'


def kept(token, w, r, head):
    return token % w % r == head % r


def seen(token, w, r):
    """Whether the query of head 0 attends to this token: same segment, same rows, not later."""
    return token // w == QUERY // w and token <= QUERY and kept(token, w, r, 0) and kept(QUERY, w, r, 0)


def cell(token, y, w, r, head):
    kind = 'kept' if kept(token, w, r, head) else 'cell'
    if head == 0 and seen(token, w, r):
        kind = 'own' if token // LOCAL == QUERY // LOCAL else 'received'
    return f'<rect class="{kind}" x="{x_of(token) + 2}" y="{y + 2}" width="{CELL - 4}" height="{ROW - 4}" rx="3"/>'


def segment_label(begin, w):
    ranks = [begin // LOCAL, (begin + w - 1) // LOCAL]
    if ranks[0] == ranks[1]:
        return 'local'
    names = ', '.join(str(rank) for rank in range(ranks[0], ranks[1] + 1))
    return f'gathered by ranks {names}'


def branch(index, w, r):
    y = TOP + index * BAND
    out = [text(LEFT - 10, y + 12, f'w = {w}, r = {r}', 'strong', 'end')]
    for head in range(HEADS):
        top = y + 18 + head * ROW
        out.append(text(LEFT - 10, top + 15, f'head {head}', 'quiet', 'end'))
        out += [cell(token, top, w, r, head) for token in range(TOKENS)]
    out.append(f'<rect class="query" x="{x_of(QUERY) + 1}" y="{y + 19}" width="{CELL - 2}" height="{ROW - 2}" rx="4"/>')
    bottom = y + 18 + HEADS * ROW
    for begin in range(0, TOKENS, w):
        left, right = x_of(begin) + 3, x_of(begin + w) - 3
        out.append(f'<path class="segment" d="M{left} {bottom + 2}v6H{right}v-6"/>')
        out.append(text((left + right) // 2, bottom + 22, segment_label(begin, w), 'quiet'))
    return out


def legend(y):
    out, x = [], 40
    for kind, words, advance in [('kept', 'kept row', 112), ('own', 'key the query sees, on its rank', 252),
                                 ('received', 'key received from another rank', 250),
                                 ('query', f'the query, token {QUERY}', 0)]:
        out.append(f'<rect class="{kind}" x="{x}" y="{y - 12}" width="16" height="14" rx="3"/>')
        out.append(text(x + 23, y, words, '', 'start'))
        x += advance
    return out


def figure():
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
           'role="img">',
           '<title>Rows of dilated attention on four ranks</title>',
           f'<style>{STYLE}</style>']
    for rank in range(RANKS):
        out.append(text(x_of(rank * LOCAL) + LOCAL * CELL // 2, 20, f'rank {rank}', 'strong'))
        first = rank * LOCAL
        out.append(text(x_of(first) + LOCAL * CELL // 2, 38, f'tokens {first} to {first + LOCAL - 1}', 'quiet'))
    for rank in range(1, RANKS):
        out.append(f'<path class="rank" d="M{x_of(rank * LOCAL)} 8V{HEIGHT - 40}"/>')
    for index, (w, r) in enumerate(BRANCHES):
        out += branch(index, w, r)
    out += legend(HEIGHT - 12)
    return '\n'.join(out + ['</svg>'])


if __name__ == '__main__':
    print(figure())
