"""Each row of the table of pipelines holds: the config runs with ConvNeXt, or fails for the reason that is given."""

from collections import Counter

import pytest

from convnext_dense import UserError
from convnext_dense.swap import pipelines, pipelines_page
from convnext_dense.swap.pipelines import GAPS, ROWS, SURVEY, check_gap, check_row, check_table
from convnext_dense.swap.survey import REASONS, Survey, find_reason, survey
from convnext_dense.swap.upstream import all_configs, config_folder, find_config

FAST = {
    'FCOS',
    'RTMDet-Ins',
    'DETR',
    'YOLACT',
    'CenterNet',
    'OCRNet',
    'SegNeXt',
    'DeepLabV3+',
    'Faster R-CNN C4',
    'SAN',
    'BiSeNetV2',
}
# the methods that the table must have
METHODS = """
Faster R-CNN, Mask R-CNN, Cascade Mask R-CNN, RetinaNet, FCOS, ATSS, GFL, RTMDet, RTMDet-Ins, YOLOX, TOOD, Sparse R-CNN,
DETR, Deformable DETR, DINO, DAB-DETR, MaskFormer, SOLOv2, CondInst, PointRend, HTC, SCNet, Double-Head R-CNN, PAFPN,
NAS-FPN, CenterNet, QueryInst, DDQ, Deformable RoI pooling, TOOD with deformable convolutions, UPerNet, FCN, PSPNet,
DeepLabV3+, OCRNet, SegFormer, Mask2Former, K-Net, Semantic FPN, CCNet, DANet, EncNet, ISANet, DNLNet, GCNet, PSANet
"""


def cases(table):
    return [pytest.param(row, id=row.method, marks=[] if row.method in FAST else pytest.mark.slow) for row in table]


@pytest.mark.parametrize('row', cases(ROWS))
def test_a_config_runs_as_the_table_says(row):
    assert check_row(row) == ''


@pytest.mark.parametrize('gap', cases(GAPS))
def test_a_config_does_not_run_as_the_table_says(gap):
    assert check_gap(gap) == ''


# the table


def test_the_table_has_every_method_that_was_asked_for():
    methods = {row.method for row in ROWS}
    assert {name.strip() for name in METHODS.replace('\n', ' ').split(',')} <= methods
    assert {'Mask2Former, instance', 'Mask2Former, panoptic'} <= methods


def test_each_config_stands_in_the_table_once_and_is_one_of_upstreams():
    names = [row.config for row in (*ROWS, *GAPS)]
    assert [name for name, count in Counter(names).items() if count > 1] == []
    for name in names:
        assert sum((config_folder(package) / name).is_file() for package in ('mmdet', 'mmseg')) == 1, name
    for row in pipelines.SEGMENTATION:
        assert find_config(row.config)[0].startswith('mmseg::')


def test_every_gap_has_a_reason():
    assert all(len(gap.why) > 10 for gap in GAPS)
    assert {gap.method for gap in GAPS if not gap.error} == {'GLIP', 'Grounding DINO'}


ROW = pipelines.Row('Net', 'net.py', (8, 16), 1.5)


@pytest.mark.parametrize(
    ('row', 'outcome', 'difference'),
    [
        (ROW, ((8, 16), 1.5, 'neck', ()), ''),
        (ROW, ((8, 16), 1.6, 'neck', ()), "net.py: ((8, 16), 1.6, 'neck', ()) instead of ((8, 16), 1.5, 'neck', ())"),
        (ROW, UserError('It broke.'), 'net.py does not run: It broke.'),
        (ROW._replace(needs='not_there'), UserError('pip install not_there'), ''),
        (ROW._replace(needs='not_there'), UserError('It broke.'), 'net.py does not run: It broke.'),
        (ROW._replace(needs='not_there'), ((8, 16), 1.5, 'neck', ()), 'net.py runs without not_there'),
        (ROW._replace(needs='torch'), UserError('pip install torch'), 'net.py does not run: pip install torch'),
        (pipelines.Gap('Net', 'net.py', 'why', 'broke'), UserError('It broke.'), ''),
        (pipelines.Gap('Net', 'net.py', 'why', 'broke'), UserError('It burst.'), 'net.py: It burst.'),
        (pipelines.Gap('Net', 'net.py', 'why', 'broke'), ((8, 16), 1.5, 'neck', ()), 'net.py runs'),
        (pipelines.Gap('Net', 'net.py', 'why'), AssertionError('tried'), ''),
    ],
)
def test_a_row_that_differs_is_told(row, outcome, difference, monkeypatch):
    def try_config(config):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(pipelines, 'try_config', try_config)
    monkeypatch.setattr(pipelines, 'ROWS', (row,))
    monkeypatch.setattr(pipelines, 'GAPS', ())
    told = []
    assert check_table(tell=told.append) is (difference == '')
    assert told == [difference or 'net.py: as in the table']


def test_a_config_that_is_not_in_the_table():
    with pytest.raises(UserError, match=r'^The table has no net.py; docs/pipelines.md lists what it has.$'):
        check_table(['net.py'])


# the page


def test_the_page_is_current():
    assert pipelines_page.is_current()


def test_the_page_says_how_many_run(tmp_path, monkeypatch):
    text = pipelines_page.describe_pipelines()
    assert f'**{len(ROWS) - 3} of {len(ROWS) + len(GAPS)} run**, and 3 more where a package is installed' in text
    assert f'**{SURVEY.num_swapped} of {SURVEY.num_configs}**' in text
    assert all(f'`{row.config}`' in text for row in (*ROWS, *GAPS))
    monkeypatch.setattr(pipelines_page, 'FILE', tmp_path / 'page.md')
    assert not pipelines_page.is_current()
    pipelines_page.write_page()
    assert pipelines_page.is_current()


# all configs


def test_the_survey_counts():
    told = []
    names = [
        'mmdet::retinanet/retinanet_r18_fpn_1x_coco.py',
        'mmdet::rpn/rpn_r50-caffe-c4_1x_coco.py',
        'mmdet::common/ms_3x_coco.py',
        'mmdet::retinanet/retinanet_tta.py',
    ]
    c4, piece = find_reason('has no neck'), find_reason('is no config of a detector or a segmentor')
    assert survey(names, told.append) == Survey(4, 1, {piece: 2, c4: 1})
    assert [line.partition(': ')[0] for line in told] == names[1:]


def test_the_survey_adds_up():
    assert SURVEY.num_swapped + sum(SURVEY.reasons.values()) == SURVEY.num_configs
    assert set(SURVEY.reasons) <= set(REASONS.values())


def test_the_survey_knows_all_configs(originals):
    assert len(all_configs()) == SURVEY.num_configs


@pytest.mark.slow
def test_the_survey_is_that_of_the_page(originals):
    assert survey(tell=lambda line: None) == SURVEY
