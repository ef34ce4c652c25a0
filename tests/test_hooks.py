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
from mmengine.logging import MMLogger

from convnext_dense.train import screen
from convnext_dense.train.screen import ProgressBarHook, prints_in_log, tame_console
from convnext_dense.train.summary import draw_curves, draw_predictions, metric_table, read_scalars


@pytest.fixture
def logger(tmp_path):
    """A logger as a run has it: a tamed screen and a log file."""
    logger = MMLogger('hooks', log_file=str(tmp_path / 'log'))
    tame_console(logger)
    yield logger
    logger.handlers[1].close()


@pytest.mark.parametrize(
    ('message', 'level', 'is_ours', 'is_shown'),
    [
        ('one line', logging.INFO, False, True),
        ('Config:\nmodel = dict(\n', logging.INFO, False, False),
        ('Exp name: x', logging.INFO, False, False),
        ('two\nlines', logging.WARNING, False, True),
        ('Advance dataloader 9 steps to skip data that has already been trained', logging.WARNING, False, False),
        ('a table\nof two lines', logging.INFO, True, True),
    ],
)
def test_the_screen_shows_lines_and_the_log_everything(message, level, is_ours, is_shown, logger, tmp_path, capsys):
    logger.handlers[0].setStream(sys.stdout)
    logger.handle(logger.makeRecord('name', level, screen.__file__ if is_ours else 'file', 1, message, (), None))
    assert (message.strip() in capsys.readouterr().out) == is_shown
    assert message.strip() in (tmp_path / 'log').read_text()


def test_prints_of_pycocotools_go_to_the_log_and_those_of_a_user_to_the_screen(logger, tmp_path, capsys):
    from pycocotools.coco import COCO

    (tmp_path / 'coco.json').write_text(json.dumps(dict(images=[], annotations=[], categories=[])))
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
    for words in ('10/40', '<00:0', 'loss=1.500', 'val'):  # it starts where the run resumes; the time left
        assert words in shown.decode()


def test_no_progress_bar_in_a_file(capfd):
    run_with_a_bar()
    assert capfd.readouterr().err == ''


@pytest.mark.parametrize(
    ('metrics', 'lines'),
    [
        (
            {'coco/bbox_mAP': 0.25, 'coco/segm_mAP': 0.5, 'coco/bbox_mAP_50': 0.75, 'coco/segm_mAP_l': -1.0},
            {0: 'box mask', 1: 'AP 0.250 0.500', 2: 'AP50 0.750 -', 6: 'APl - -'},  # COCO's -1: no large object
        ),
        ({'coco/bbox_mAP': 0.3, 'coco/AR@100': 0.4}, {0: 'box', 1: 'AP 0.300', 2: 'AP50 -', 7: 'AR@100 0.400'}),
        ({'mIoU': 45.5, 'aAcc': 80.0}, {0: 'mIoU 45.500', 1: 'aAcc 80.000'}),
    ],
)
def test_metric_table(metrics, lines):
    table = [' '.join(line.split()) for line in metric_table(metrics)]
    assert {place: table[place] for place in lines} == lines
    assert len(table) == max(lines) + 1


def test_missing_metrics_are_explained():
    (line,) = metric_table({})
    assert line.startswith('no metrics: ')


def test_resumed_runs_join_into_one_curve(tmp_path):
    first, second = tmp_path / '1.json', tmp_path / '2.json'
    first.write_text('{"loss": 3, "step": 1}\n{"loss": 2, "step": 2}\n{"loss": 9, "step": 3}')
    second.write_text('{"loss": 1, "step": 3}\n{"mIoU": 5, "step": 3}\n{"loss": 0.5, "st')  # killed in a line
    rows = read_scalars([first, second])
    assert [row.get('loss') for row in rows] == [3, 2, None, 1]
    draw_curves(rows, ['mIoU'], tmp_path / 'curves.png')
    image = cv2.imread(str(tmp_path / 'curves.png')).astype(int)
    blue = (np.abs(image - (180, 119, 31)).max(axis=2) < 20).sum()  # matplotlib's first line colour, as BGR
    assert blue > 100


def test_ground_truth_stands_left_of_the_prediction(tmp_path):
    from mmengine.structures import PixelData
    from mmseg.structures import SegDataSample
    from mmseg.visualization import SegLocalVisualizer

    cv2.imwrite(str(tmp_path / 'image.png'), np.full((160, 165, 3), 128, np.uint8))
    sample = SegDataSample(metainfo=dict(img_path=str(tmp_path / 'image.png')))
    sample.gt_sem_seg = PixelData(data=torch.zeros(1, 160, 165, dtype=torch.long))
    sample.pred_sem_seg = PixelData(data=torch.ones(1, 160, 165, dtype=torch.long))
    visualizer = SegLocalVisualizer(alpha=1.0)
    visualizer.dataset_meta = dict(classes=('red', 'blue'), palette=[[255, 0, 0], [0, 0, 255]])
    draw_predictions(visualizer, [sample], tmp_path / 'grid.png')
    grid = cv2.imread(str(tmp_path / 'grid.png'))
    assert grid.shape == (326, 666, 3)  # two images side by side of twice their size, with margins of 6
    assert grid[10, 10].tolist() == [0, 0, 255]  # OpenCV's channels are blue, green, red
    assert grid[10, 650].tolist() == [255, 0, 0]
