"""Headers: what they say is read back, and every mistake is answered with file, line and what is allowed."""

from decimal import Decimal

import pytest

from convnext_dense import UserError
from convnext_dense.train.config_header import Header, Metric, find_header, read_header

WHOLE = '''"""Cascade Mask R-CNN, ConvNeXt-S, COCO
(arXiv 2201.03545, Table 3).

Command: torchrun --nproc_per_node 8 tools/train.py configs/det/x.py
Expected: box AP 51.9, mask AP 45.0;
108 M parameters, 827 GFLOPs at 1280x800.
Initial weights: https://example.org/a/b.pth,
MIT.
Note: text of
two lines.
"""
model = dict()
'''


@pytest.fixture
def write(tmp_path):
    def write(text, name='leaf.py'):
        (tmp_path / name).write_text(text)
        return tmp_path / name

    return write


def entry(expected, weights='Initial weights: none.'):
    return f'"""Title.\n\nCommand: run\nExpected: {expected}\n{weights}\n"""\n'


def test_all_fields(write):
    assert read_header(write(WHOLE)) == Header(
        title='Cascade Mask R-CNN, ConvNeXt-S, COCO (arXiv 2201.03545, Table 3)',
        command='torchrun --nproc_per_node 8 tools/train.py configs/det/x.py',
        metrics=(
            Metric('box AP', Decimal('51.9'), is_bound=False, where=''),
            Metric('mask AP', Decimal('45.0'), is_bound=False, where=''),
        ),
        params=Decimal('108'),
        gflops=Decimal('827'),
        size=(1280, 800),
        weights='https://example.org/a/b.pth',
        licence='MIT',
        note='text of two lines.',
    )


@pytest.mark.parametrize(
    ('expected', 'metrics', 'params', 'gflops', 'size'),
    [
        ('mIoU (ss) 46.0, mIoU (ms) 46.7.', ['mIoU (ss) 46.0', 'mIoU (ms) 46.7'], None, None, None),
        ('mIoU >= 60.', ['mIoU >= 60'], None, None, None),
        ('box AP50 >= 0.75 and mask AP50 >= 0.70', ['box AP50 >= 0.75', 'mask AP50 >= 0.70'], None, None, None),
        ('mIoU >= 60 on held-out drawings.', ['mIoU >= 60 on held-out drawings'], None, None, None),
        ('86 M parameters, 741 GFLOPs at 1280x800.', [], '86', '741', (1280, 800)),
        ('box AP 52.9; 486.5 GFLOPs at 1280x800.', ['box AP 52.9'], None, '486.5', (1280, 800)),
        ('not published.', [], None, None, None),
        ('not published; 88.6 M parameters.', [], '88.6', None, None),
    ],
)
def test_expected(write, expected, metrics, params, gflops, size):
    header = read_header(write(entry(expected)))
    assert [str(metric) for metric in header.metrics] == metrics
    assert [metric.is_bound for metric in header.metrics] == ['>=' in metric for metric in metrics]
    assert (header.params, header.gflops) == tuple(value and Decimal(value) for value in (params, gflops))
    assert header.size == size


@pytest.mark.parametrize(
    ('measured', 'metrics'),
    [
        ('Measured: box AP50 0.85, mask AP50 0.86.\n', ['box AP50 0.85', 'mask AP50 0.86']),
        ('Measured: mIoU 85.7 on held-out drawings.\n', ['mIoU 85.7 on held-out drawings']),
        ('', []),
    ],
)
def test_measured(write, measured, metrics):
    header = read_header(write(entry('mIoU >= 60.', f'{measured}Initial weights: none.')))
    assert [str(metric) for metric in header.measured] == metrics
    assert [str(metric) for metric in header.metrics] == ['mIoU >= 60']


@pytest.mark.parametrize(
    ('weights', 'source', 'licence'),
    [
        ('Initial weights: convnext://small_1k, MIT.', 'convnext://small_1k', 'MIT'),
        ('Initial weights: convnext://v2_huge_1k, CC-BY-NC 4.0.', 'convnext://v2_huge_1k', 'CC-BY-NC 4.0'),
        ('Initial weights: none.', '', ''),
        ('', '', ''),
    ],
)
def test_initial_weights(write, weights, source, licence):
    header = read_header(write(entry('not published.', weights)))
    assert (header.weights, header.licence) == (source, licence)


@pytest.mark.parametrize(
    ('text', 'message'),
    [
        (
            WHOLE.replace('827 GFLOPs at 1280x800', '827 GFLOPs'),
            'leaf.py, line 6: "Expected:" has \'827 GFLOPs\'. Allow',
        ),
        (
            WHOLE.replace('mask AP 45.0', 'mask AP'),
            'leaf.py, line 5: "Expected:" has \'mask AP\'. Allowed, separated by',
        ),
        (WHOLE.replace('108 M', '108'), 'leaf.py, line 6: "Expected:" has \'108 parameters\'. Allowed, separated by'),
        (
            WHOLE.replace(',\nMIT.', ''),
            'leaf.py, line 7: "Initial weights:" has \'https://example.org/a/b.pth\'. Allowed:',
        ),
        (
            WHOLE.replace('Note:', 'Measured: box AP 51.9,\nmask AP >= 45.\nNote:'),
            'leaf.py, line 10: "Measured:" has \'mask AP >= 45\'. Allowed, separated by commas: a metric as a run of',
        ),
        (entry('mIoU 5', 'Measured: 3 GFLOPs'), 'leaf.py, line 5: "Measured:" has \'3 GFLOPs\'. Allowed, separated by'),
        (WHOLE.replace('Expected:', 'Expects:'), 'leaf.py, line 1: the header has no "Expected:". A header is a title'),
        (entry(''), 'leaf.py, line 1: the header has no "Expected:"'),
        ('# a comment\n\nmodel = dict()\n', 'leaf.py, line 3: the header has no "Command:"'),
        ('', 'leaf.py, line 1: the header has no "Command:"'),
    ],
)
def test_mistakes(write, text, message):
    with pytest.raises(UserError) as error:
        read_header(write(text))
    assert message in str(error.value)


def test_a_file_without_a_header_is_no_mistake_where_none_is_needed(write):
    assert find_header(write('"""Words."""\nmodel = dict()\n')) is None
    assert find_header(write('"""Words.\n\nNote: more words.\n"""\n')) is None
    assert find_header(write('{}', 'config.json')) is None
    assert find_header(write(WHOLE)).gflops == 827
    with pytest.raises(UserError, match="has 'mask AP'"):
        find_header(write(WHOLE.replace('mask AP 45.0', 'mask AP')))
