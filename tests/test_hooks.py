"""The screen and the pictures of a run."""

import contextlib
import fcntl
import json
import logging
import os
import pty
import struct
import sys
import termios
import time
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch

from convnext_dense.train import screen
from convnext_dense.train.screen import ConsoleHandler, ProgressBarHook, prints_in_log
from convnext_dense.train.summary import (
    describe_files,
    draw_curves,
    draw_predictions,
    explain_no_metrics,
    metric_table,
    read_scalars,
)


def log_record(message, level=logging.INFO):
    return logging.LogRecord('name', level, 'file', 1, message, None, None)


def test_console_shows_lines_and_hides_blocks():
    handler = ConsoleHandler()
    assert handler.filter(log_record('one line'))
    assert not handler.filter(log_record('Config:\nmodel = dict(\n'))
    assert not handler.filter(log_record('Exp name: x'))
    assert handler.filter(log_record('two\nlines', logging.WARNING))
    own = log_record('a table\nof two lines')
    own.pathname = screen.__file__
    assert handler.filter(own)


def test_prints_of_pycocotools_go_to_the_log_and_those_of_a_user_to_the_screen(tmp_path, capsys):
    from pycocotools.coco import COCO

    logger = logging.getLogger('prints')
    logger.addHandler(logging.FileHandler(tmp_path / 'log'))
    annotations = dict(images=[], annotations=[], categories=[])
    (tmp_path / 'coco.json').write_text(json.dumps(annotations))
    with prints_in_log(logger):
        COCO(str(tmp_path / 'coco.json'))
        print('of the user')
    assert capsys.readouterr().out == 'of the user\n'
    assert 'index created!' in (tmp_path / 'log').read_text()
    COCO(str(tmp_path / 'coco.json'))
    assert 'index created!' in capsys.readouterr().out  # outside of our runs everything is as ever


def run_with_a_bar() -> None:
    hook = ProgressBarHook()
    runner = SimpleNamespace(max_iters=40, iter=10, val_dataloader=range(3))
    hook.before_train(runner)
    for i in range(30):
        time.sleep(0.02)
        hook.after_train_iter(runner, i, outputs=dict(loss=1.5))
    hook.before_val_epoch(runner)
    hook.after_val_iter(runner, 0)
    hook.after_val_epoch(runner)
    hook.after_train(runner)


def test_progress_bar_on_a_terminal(monkeypatch):
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack('4H', 24, 100, 0, 0))  # rows, columns
    with open(theirs, 'w') as terminal:
        monkeypatch.setattr(sys, 'stderr', terminal)
        run_with_a_bar()
        monkeypatch.undo()
    shown = b''
    with contextlib.suppress(OSError):  # Linux: the other end is closed
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    text = shown.decode()
    assert '10/40' in text  # it starts where the run resumes
    assert '<00:0' in text  # the time left
    assert 'loss=1.500' in text
    assert 'val' in text


def test_no_progress_bar_in_a_file(capfd):
    run_with_a_bar()
    assert capfd.readouterr().err == ''


def test_metric_table_of_a_detector():
    metrics = {
        f'coco/{kind}_{name}': 0.25
        for kind in ('bbox', 'segm')
        for name in ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m')
    }
    metrics |= {'coco/bbox_mAP_l': -1.0, 'coco/segm_mAP_l': -1.0}
    lines = metric_table(metrics)
    assert lines[0].split() == ['box', 'mask']
    assert lines[2].split() == ['AP50', '0.250', '0.250']
    assert lines[6].split() == ['APl', '-', '-']  # no large object: COCO's -1


def test_metric_table_of_a_segmentor():
    assert [line.split() for line in metric_table({'mIoU': 45.5, 'aAcc': 80.0})] == [
        ['mIoU', '45.500'],
        ['aAcc', '80.000'],
    ]


def test_metric_table_of_a_choice_of_metrics():
    lines = metric_table({'coco/bbox_mAP': 0.3, 'coco/AR@100': 0.4})
    assert lines[1].split() == ['AP', '0.300']
    assert lines[2].split() == ['AP50', '-']
    assert lines[-1].split() == ['AR@100', '0.400']


@pytest.mark.parametrize(
    ('evaluator', 'reason'),
    [
        (None, 'no validation ran'),
        (SimpleNamespace(metrics=[]), 'asks for none'),
        (SimpleNamespace(metrics=[object()]), 'object gave none'),
    ],
)
def test_missing_metrics_are_explained(evaluator, reason):
    assert reason in explain_no_metrics(evaluator)


def test_only_written_files_are_named():
    assert describe_files({'checkpoint': 'a.pth', 'predictions': None}) == ['checkpoint  a.pth']


def test_curves(tmp_path):
    log = tmp_path / 'scalars.json'
    rows = [{'loss': 4.0 / i, 'step': i, 'epoch': 1} for i in range(1, 5)] + [{'coco/bbox_mAP': 0.3, 'step': 1}]
    log.write_text('\n'.join(json.dumps(row) for row in rows))
    read = read_scalars([log])
    assert len(read) == 5
    draw_curves(read, ['coco/bbox_mAP'], tmp_path / 'curves.png')
    image = cv2.imread(str(tmp_path / 'curves.png'))
    blue = (np.abs(image.astype(int) - (180, 119, 31)).max(axis=2) < 20).sum()  # matplotlib's first line colour, as BGR
    assert blue > 100


def test_resumed_runs_join_into_one_curve(tmp_path):
    first, second = tmp_path / '1.json', tmp_path / '2.json'
    first.write_text('{"loss": 3, "step": 1}\n{"loss": 2, "step": 2}\n{"loss": 9, "step": 3}')
    second.write_text('{"loss": 1, "step": 3}\n{"loss": 0.5, "st')  # the run was killed in the middle of a line
    assert [row['loss'] for row in read_scalars([first, second])] == [3, 2, 1]


def test_ground_truth_stands_left_of_the_prediction(tmp_path):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    cv2.imwrite(str(tmp_path / 'image.png'), np.full((320, 330, 3), 128, np.uint8))
    sample = SegDataSample(metainfo=dict(img_path=str(tmp_path / 'image.png')))
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 320, 330, dtype=torch.long))
    sample.pred_sem_seg = PixelData(data=torch.ones(1, 320, 330, dtype=torch.long))
    visualizer = SegLocalVisualizer(alpha=1.0)
    visualizer.dataset_meta = dict(classes=('red', 'blue'), palette=[[255, 0, 0], [0, 0, 255]])
    draw_predictions(visualizer, [sample], tmp_path / 'grid.png')
    grid = cv2.imread(str(tmp_path / 'grid.png'))
    assert grid.shape == (332, 672, 3)  # with two margins of 6
    assert grid[10, 10].tolist() == [0, 0, 255]  # OpenCV's channels are blue, green, red
    assert grid[10, 650].tolist() == [255, 0, 0]
