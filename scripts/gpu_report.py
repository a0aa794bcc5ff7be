#!/usr/bin/env python3
"""What scripts/gpu_check.sh has measured, as one JSON file and a table beside the targets.

  gpu_report.py step PREFIX                                          one line about PREFIX.json and PREFIX.memory
  gpu_report.py attention FOLDER                                     one line about FOLDER/bench/attention-*.jsonl
  gpu_report.py table FOLDER [--strict]                              FOLDER/report.json, and the table to stdout

Python 3, standard library only. table exits with 1 if --strict is given and a target is missed or was not
measured, or a part that must pass was skipped.
"""
import glob
import json
import math
import os
import sys

CARD_GIB = 79  # that a million tokens may take of a card of 80 GB, which has 79.65 GiB in all

# Shares of cuDNN's own time for the same problems, both directions together, and how they are found.
CUDNN_UNMERGED, CUDNN_MERGED, CUDNN_PACKED = 0.95, 0.85, 0.75
NATIVE = {64: 0.60, 128: 0.50}
DILATED = 1.10  # seconds per FLOP, dilated over dense
STEP = 0.50     # of the measured bf16 matmul rate
LENGTHS = (2048, 4096, 8192, 16384, 32768)
DILATED_ROWS = (2048, 4096, 8192, 16384)  # rows of a segment, as many as a dense one of this length has


def read_json(path):
    try:
        with open(path, encoding='utf-8') as file:
            return json.load(file)
    except (OSError, ValueError):
        return None


def peak_memory_mib(prefix):
    """Most of any sample of nvidia-smi above the first, which was taken before the start; or None."""
    try:
        with open(prefix + '.memory', encoding='utf-8') as file:
            numbers = [int(line) for line in file if line.strip().isdigit()]
    except OSError:
        return None
    return max(numbers[1:]) - numbers[0] if len(numbers) > 1 else None


def read_step(prefix):
    step = read_json(prefix + '.json')
    memory = peak_memory_mib(prefix)
    if step is not None:
        # Without nvidia-smi: all that is in use on the card at the end, by whomever.
        used = step.get('gpu_memory_used_bytes')
        step['gpu_memory_from'] = 'nvidia-smi' if memory else 'program' if used else None
        step['gpu_memory_mib'] = memory or (used and used / 2**20)
    return step


def say_step(prefix):
    step = read_step(prefix)
    if step is None:
        print(f'{os.path.basename(prefix)}: no figures')
        return 1
    memory = step['gpu_memory_mib']
    print('detail: {:.1f} % of {:.0f} TFLOP/s, {:.3f} s per step of {} tokens, {:.0f} tokens/s{}'.format(
        100 * step['share_of_matmul_peak'], step['matmul_peak_gflops'] / 1e3, step['median_seconds'],
        step['tokens_per_step'], step['tokens_per_second'],
        f', {memory / 1024:.1f} GiB of GPU memory' if memory else ''))
    return 0


# ------------------------------------------------------------------------------ attention


class Figure:
    """One case of `longnet bench attention`, both directions."""

    def __init__(self, json_report):
        self.raw = json_report
        shape = json_report['shape']
        self.head_dim = shape['head_dim']
        self.branch = tuple(shape['branches'][0])
        self.choice, self.position = json_report['attention'], json_report['position']
        both = (json_report['forward'], json_report['backward'])
        self.seconds = sum(t['median_seconds'] for t in both)
        self.flops = sum(t['executed_flops'] for t in both)
        self.library = self.total(both, 'sdpa_median_seconds')
        self.unmerged = self.total(both, 'unmerged_median_seconds')
        self.host = self.total(both, 'host_seconds')
        self.library_host = self.total(both, 'sdpa_host_seconds')

    @staticmethod
    def total(both, key):
        return sum(t[key] for t in both) if all(t.get(key) for t in both) else None

    def share(self):
        return self.library / self.seconds if self.library else None

    def unmerged_share(self):
        return self.library / self.unmerged if self.library and self.unmerged else None

    def tflops(self):
        return self.flops / self.seconds / 1e12

    def seconds_per_flop(self):
        return self.seconds / self.flops


def attention_cases(folder):
    """Every case that was tried, in order; the last line of a stopped process may be cut off."""
    cases = []
    for path in sorted(glob.glob(os.path.join(folder, 'bench', 'attention-*.jsonl')), key=os.path.getmtime):
        with open(path, encoding='utf-8') as file:
            for line in file:
                try:
                    cases.append(json.loads(line))
                except ValueError:
                    pass
    return cases


def read_attention(folder):
    figures = [Figure(case) for case in attention_cases(folder) if 'error' not in case]
    return {(f.head_dim, f.choice, f.position, f.branch): f for f in figures}


def say_attention(folder):
    cases = attention_cases(folder)
    errors = [c for c in cases if 'error' in c]
    text = f'detail: {len(cases) - len(errors)} measured, {len(errors)} failed'
    if errors:
        c = errors[0]
        w, r = c['shape']['branches'][0]
        text += f', the first: D {c["shape"]["head_dim"]}, {w}:{r}, {c["attention"]}, {c["position"]}: {c["error"]}'
    print(text)
    return 0


class Target:
    """A limit and the figures that are held against it; the worst one decides."""

    def __init__(self, text, limit, at_least, unit='%'):
        self.text, self.limit, self.at_least, self.unit = text, limit, at_least, unit
        self.values, self.wanted, self.lengths = [], 0, set()

    def add(self, value, where, length=None):
        self.wanted += 1
        if value is not None and math.isfinite(value):
            self.values.append((value, where))
            if length is not None:
                self.lengths.add(length)
        return self

    def worst(self):
        pick = min if self.at_least else max
        return pick(self.values) if self.values else None

    def met(self):
        """True, False, or None: not (fully) measured."""
        if not self.values:
            return None
        value = self.worst()[0]
        if not (value >= self.limit if self.at_least else value <= self.limit):
            return False
        return True if len(self.values) == self.wanted else None

    def shown(self, value):
        return f'{100 * value:.1f} %' if self.unit == '%' else f'{value:.2f} {self.unit}'

    def row(self):
        sign = '>=' if self.at_least else '<='
        worst = self.worst()
        return [self.text, f'{sign} {self.shown(self.limit)}', self.shown(worst[0]) if worst else '-',
                worst[1] if worst else '', f'{len(self.values)} of {self.wanted}',
                ' '.join(str(length) for length in sorted(self.lengths)),
                {True: 'met', False: 'MISSED', None: 'NOT MEASURED'}[self.met()]]

    def json(self):
        worst = self.worst()
        return {'target': self.text, 'limit': self.limit, 'at_least': self.at_least,
                'worst': worst[0] if worst else None, 'worst_at': worst[1] if worst else None,
                'measured': len(self.values), 'wanted': self.wanted, 'lengths': sorted(self.lengths),
                'met': self.met()}


def attention_targets(figures):
    targets = []
    for d in (64, 128):
        def get(choice, position, branch, d=d):
            return figures.get((d, choice, position, branch))

        unmerged = Target(f'cudnn without the merge, D {d}, of plain cuDNN', CUDNN_UNMERGED, True)
        merged = Target(f'cudnn with the merge, D {d}, of plain cuDNN', CUDNN_MERGED, True)
        native = Target(f'native, D {d}, of plain cuDNN', NATIVE[d], True)
        for w in LENGTHS:
            cudnn, own = get('cudnn', 'none', (w, 1)), get('native', 'none', (w, 1))
            unmerged.add(cudnn and cudnn.unmerged_share(), f'w {w}', w)
            merged.add(cudnn and cudnn.share(), f'w {w}', w)
            native.add(own and own.share(), f'w {w}', w)
        packed = Target(f'cudnn with packed rows (xpos), D {d}, of plain cuDNN', CUDNN_PACKED, True)
        dilated = Target(f'dilated (r 4) over dense per FLOP, D {d}', DILATED, False, 'x')
        for w in LENGTHS:
            rotated = get('cudnn', 'xpos', (w, 1))
            packed.add(rotated and rotated.share(), f'w {w}', w)
        for w in DILATED_ROWS:
            for choice in ('cudnn', 'native'):
                dense, sparse = get(choice, 'none', (w, 1)), get(choice, 'none', (4 * w, 4))
                ratio = sparse.seconds_per_flop() / dense.seconds_per_flop() if dense and sparse else None
                dilated.add(ratio, f'{choice}, {w} rows', w)
        targets += [unmerged, merged, packed, native, dilated]
    return targets


def step_targets(steps):
    targets = []
    for name, model in (('step_125m', '125M'), ('step_760m', '760M')):
        target = Target(f'training step of {model}, of the measured bf16 matmul rate', STEP, True)
        targets.append(target.add(steps[name] and steps[name]['share_of_matmul_peak'], 'N 32768'))
    million = steps['million_tokens']
    enough = million and million['tokens_per_step'] >= 1000000 and million['gpu_memory_mib']
    target = Target('GPU memory of the 125M model at 1M tokens', CARD_GIB, False, 'GiB')
    targets.append(target.add(million['gpu_memory_mib'] / 1024 if enough else None,
                              f'{million["tokens_per_step"]} tokens' if million else ''))
    return targets


# ------------------------------------------------------------------------------ table


def read_tsv(path):
    try:
        with open(path, encoding='utf-8') as file:
            return [line.rstrip('\n').split('\t') for line in file if line.strip()]
    except OSError:
        return []


def print_table(title, head, rows):
    print(title)
    if not rows:
        print('  nothing')
        return
    widths = [max(len(str(row[i])) for row in [head] + rows) for i in range(len(head))]
    for row in [head] + rows:
        print('  ' + '  '.join(str(cell).ljust(width) for cell, width in zip(row, widths)).rstrip())
    print()


def percent(share):
    return '-' if share is None else f'{100 * share:.1f} %'


def table(folder, strict):
    machine = {row[0]: row[1] if len(row) > 1 else '' for row in read_tsv(os.path.join(folder, 'machine.tsv'))}
    keys = ('part', 'must', 'status', 'seconds', 'limit', 'detail')
    parts = [dict(zip(keys, row)) for row in read_tsv(os.path.join(folder, 'parts.tsv'))]
    for part in parts:
        part['must'] = part['must'] == 'must'
        part['seconds'], part['limit'] = int(part['seconds']), int(part['limit'])
    figures = read_attention(folder)
    steps = {name: read_step(os.path.join(folder, 'bench', name))
             for name in ('step_125m', 'step_760m', 'million_tokens')}
    collectives = read_json(os.path.join(folder, 'bench', 'collectives.json'))
    shared = read_json(os.path.join(folder, 'bench', 'collectives_shared.json'))
    targets = attention_targets(figures) + step_targets(steps)

    for key, value in machine.items():
        print(f'{key}: {value}')
    print()
    print_table('Parts (* must pass)', ['part', 'result', 'seconds', 'detail'],
                [[p['part'] + ('*' if p['must'] else ''), p['status'], p['seconds'], p['detail']] for p in parts])
    rows = []
    for (d, choice, position, branch), f in sorted(figures.items()):
        rows.append([d, branch[0], branch[1], position, choice, f'{f.tflops():.0f}',
                     percent(f.flops / f.seconds / 1e9 / f.raw['matmul_gflops'] if f.raw.get('matmul_gflops') else None),
                     percent(f.unmerged_share()), percent(f.share()), percent(f.host and f.host / f.seconds),
                     percent(f.library_host and f.library_host / f.library)])
    print_table('Attention, forward and backward together, bf16 causal (host: its share of the time; near 100 %: the '
                'host limits)',
                ['D', 'w', 'r', 'position', 'kernel', 'TFLOP/s', 'of matmul', 'unmerged of cuDNN', 'of cuDNN', 'host',
                 'host of cuDNN'], rows)
    print_table('Training', ['', 'tokens', 's per step', 'tokens/s', 'of matmul', 'GPU memory'],
                [[name, s['tokens_per_step'], f'{s["median_seconds"]:.3f}', f'{s["tokens_per_second"]:.0f}',
                  percent(s['share_of_matmul_peak']),
                  f'{s["gpu_memory_mib"] / 1024:.1f} GiB' if s['gpu_memory_mib'] else '-']
                 for name, s in steps.items() if s])
    for found, how in ((collectives, ''), (shared, ' that share one GPU')):
        if found:
            print_table(f'Collectives, {found["ranks"]} ranks{how}, {found["transport"]}',
                        ['operation', 'bytes', 'bus GB/s'],
                        [[r['operation'], r['bytes'], f'{r["bus_gigabytes_per_second"]:.1f}']
                         for r in found.get('results', [])])
    print_table('Targets (the worst of what was measured)',
                ['target', 'wanted', 'measured', 'at', 'figures', 'lengths measured', ''], [t.row() for t in targets])
    failed = [p['part'] for p in parts if p['must'] and p['status'] in ('failed', 'timeout', 'not run')]
    skipped = [p['part'] for p in parts if p['must'] and p['status'] == 'skipped']
    missed = [t for t in targets if t.met() is False]
    unknown = [t for t in targets if t.met() is None]
    print(f'{len(parts)} parts: ' + ('passed' if not failed else 'FAILED: ' + ', '.join(failed)) +
          (f', {len(skipped)} skipped: ' + ', '.join(skipped) if skipped else '') +
          f'; {len(targets)} targets: {len(targets) - len(missed) - len(unknown)} met, {len(missed)} missed, '
          f'{len(unknown)} not fully measured')
    report = {'machine': machine, 'parts': parts, 'failed': failed, 'skipped': skipped,
              'attention': [f.raw for _, f in sorted(figures.items())],
              'steps': {name: s for name, s in steps.items() if s}, 'collectives': collectives,
              'collectives_shared': shared,
              'targets': [t.json() for t in targets]}
    with open(os.path.join(folder, 'report.json'), 'w', encoding='utf-8') as file:
        json.dump(report, file, indent=1)
        file.write('\n')
    return 1 if strict and (missed or unknown or skipped) else 0


def main(words):
    if len(words) == 2 and words[0] == 'step':
        return say_step(words[1])
    if len(words) == 2 and words[0] == 'attention':
        return say_attention(words[1])
    if len(words) in (2, 3) and words[0] == 'table' and words[2:] in ([], ['--strict']):
        return table(words[1], len(words) == 3)
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == '__main__':
    sys.exit(main(sys.argv[1:]))
