"""UperNet for crops of 640 pixels."""

_base_ = ['upernet_512.py']

window = (640, 640)
model = dict(
    data_preprocessor=dict(size=window),
    test_cfg=dict(crop_size=window, stride=(2 * window[0] // 3, 2 * window[1] // 3)),
)
