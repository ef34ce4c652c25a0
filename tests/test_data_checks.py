"""Checks of a user's data: each mistake has its own message, and sound data passes without one."""

import copy
import json

import numpy as np
import pytest
from PIL import Image

import convnext_dense  # noqa: F401 - makes mmdet importable
from convnext_dense.compat.errors import UserError
from convnext_dense.data import check_coco, check_dataset, check_segmentation, write_shapes
from convnext_dense.data.checks import coco as coco_checks
from convnext_dense.data.checks import configs, files
from convnext_dense.data.checks.remembered import look_at
from convnext_dense.data.checks.segmentation import read_values
from convnext_dense.data.shapes import LABELS, SHAPES

WIDTH, HEIGHT = 32, 24
CLASSES = ('fig', 'date')


def error_of(function, *args, **kwargs):
    """Return the text of the error that a call raises."""
    with pytest.raises(UserError) as caught:
        function(*args, **kwargs)
    return str(caught.value)


def save_picture(path, size=(WIDTH, HEIGHT), **kwargs):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    Image.fromarray(noise).save(path, **kwargs)


class Coco:
    """Eight pictures with two boxes each; tests change ``content`` and save it again."""

    def __init__(self, root):
        self.root = root
        self.images = root / 'images'
        self.file = root / 'train.json'
        for index in range(8):
            save_picture(self.images / f'{index}.jpg')
        self.content = {
            'images': [{'id': i, 'file_name': f'{i}.jpg', 'width': WIDTH, 'height': HEIGHT} for i in range(8)],
            'annotations': [
                {
                    'id': i,
                    'image_id': i // 2,
                    'category_id': 1 + i % 2,
                    'bbox': [2, 3, 10, 8],
                    'area': 80,
                    'segmentation': [[2, 3, 12, 3, 12, 11]],
                }
                for i in range(16)
            ],
            'categories': [{'id': 1, 'name': 'fig'}, {'id': 2, 'name': 'date'}],
        }
        self.save()

    def save(self):
        self.file.write_text(json.dumps(self.content))

    def check(self, **kwargs):
        self.save()
        return check_coco(self.file, self.images, **{'classes': CLASSES} | kwargs)

    def error(self, **kwargs):
        self.save()
        return error_of(check_coco, self.file, self.images, **{'classes': CLASSES} | kwargs)

    def config(self, **kwargs):
        common = {'type': 'CocoDataset', 'data_root': str(self.root), 'ann_file': 'train.json'}
        return common | {'data_prefix': {'img': 'images/'}, 'metainfo': {'classes': CLASSES}} | kwargs


@pytest.fixture
def coco(tmp_path):
    return Coco(tmp_path)


class Segmentation:
    """Six pictures with label maps of the values 0, 1, 2 (three classes) and 255 (ignored)."""

    def __init__(self, root):
        self.root = root
        self.images, self.labels = root / 'img', root / 'ann'
        for index in range(6):
            save_picture(self.images / f'{index}.jpg')
            self.write(index, np.resize([0, 1, 2, 255], (HEIGHT, WIDTH)))

    def write(self, index, labels):
        self.labels.mkdir(exist_ok=True)
        Image.fromarray(np.asarray(labels, np.uint8)).save(self.labels / f'{index}.png')

    def check(self, **kwargs):
        return check_segmentation(self.images, self.labels, **{'num_classes': 3} | kwargs)

    def error(self, **kwargs):
        return error_of(self.check, **kwargs)

    def config(self, **kwargs):
        common = {'type': 'BaseSegDataset', 'data_root': str(self.root), 'metainfo': {'classes': ('a', 'b', 'c')}}
        return common | {'data_prefix': {'img_path': 'img', 'seg_map_path': 'ann'}} | kwargs


def test_absolute_file_names_need_no_folder(coco):
    for image in coco.content['images']:
        image['file_name'] = str(coco.images / image['file_name'])
    coco.save()
    config = coco.config(data_root='', ann_file=str(coco.file), data_prefix={'img': ''})
    assert check_dataset(config) == []


def test_all_errors_of_a_file_are_told_at_once(coco):
    coco.content['annotations'][4]['bbox'] = [2, 3, 0, 8]
    coco.content['annotations'][5]['image_id'] = 99
    message = coco.error(classes=('fig', 'Date'))
    assert all(part in message for part in ("'Date'", 'image_id 99', '[2, 3, 0, 8]'))


@pytest.fixture
def segmentation(tmp_path):
    return Segmentation(tmp_path)


# ---------------------------------------------------------------------------------------------------------- sound data


def test_sound_coco_passes(coco):
    assert coco.check() == []
    assert coco.check(classes=None, masks=True) == []
    assert check_dataset(coco.config()) == []
    assert (
        check_dataset(coco.config(data_root=None, ann_file=str(coco.file), data_prefix={'img': str(coco.images)})) == []
    )


def test_sound_segmentation_passes(segmentation):
    assert segmentation.check() == []
    assert check_dataset(segmentation.config()) == []
    assert check_dataset(segmentation.config(data_prefix={'img_path': 'img'})) == []  # pictures alone


def test_the_drawn_data_set_passes(tmp_path):
    root = str(write_shapes(tmp_path / 'shapes', num_train=30, num_val=10, size=64))
    instances = {'type': 'mmdet.CocoDataset', 'data_root': root, 'metainfo': {'classes': list(SHAPES)}}
    labels = {'type': 'mmseg.BaseSegDataset', 'data_root': root, 'metainfo': {'classes': list(LABELS)}}
    for split in ('train', 'val'):
        ann_file = f'annotations/instances_{split}.json'
        assert check_dataset(instances | {'ann_file': ann_file, 'data_prefix': {'img': f'images/{split}'}}) == []
        prefix = {'img_path': f'images/{split}', 'seg_map_path': f'labels/{split}'}
        labels |= {'data_prefix': prefix, 'img_suffix': '.png'}
        assert check_dataset(labels | {'reduce_zero_label': True}) == []
        message = error_of(check_dataset, labels)
        assert 'the value 8; allowed are 0 to 7, and 255 for unlabelled' in message
        assert 'set reduce_zero_label=True in train_dataloader.dataset' in message


# ------------------------------------------------------------------------------------------------- the annotation file


def test_missing_annotation_file(coco, monkeypatch):
    monkeypatch.chdir(coco.root)
    message = error_of(check_coco, 'nope/train.json', coco.images, key='val_dataloader.dataset')
    assert message.startswith(f'annotation file not found: nope/train.json (that is {coco.root}/nope/train.json). ')
    assert 'Correct data_root, ann_file or data_prefix in the config.' in message
    assert '--cfg-options val_dataloader.dataset.data_root=/path/to/the/data/' in message
    assert 'annotation file is a folder: ' in error_of(check_coco, coco.root, coco.images)


def test_missing_public_data_shows_its_layout(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    coco = {'type': 'CocoDataset', 'data_root': 'data/coco/', 'data_prefix': {'img': 'train2017/'}}
    message = error_of(check_dataset, coco | {'ann_file': 'annotations/instances_train2017.json'})
    assert message.startswith('annotation file not found: data/coco/annotations/instances_train2017.json (that is ')
    assert 'The configs expect COCO as\n  data/coco/annotations/instances_train2017.json\n' in message
    assert '\n  data/coco/train2017/\n' in message
    assert '--cfg-options train_dataloader.dataset.data_root=/path/to/the/data/ (likewise the other loaders' in message

    ade = {'type': 'ADE20KDataset', 'data_root': 'data/ade/ADEChallengeData2016'}
    message = error_of(check_dataset, ade | {'data_prefix': {'img_path': 'images/training', 'seg_map_path': 'x'}})
    assert message.startswith('image folder not found: data/ade/ADEChallengeData2016/images/training (that is ')
    assert 'The configs expect ADE20K as\n  data/ade/ADEChallengeData2016/images/training/\n' in message


@pytest.mark.parametrize(
    ('text', 'expected'),
    [
        ('', 'is empty (0 bytes): copy or download it again.'),
        (
            '{"images": [],\n "annotations": [}',
            'is not valid JSON: Expecting value at line 2, column 18. Mend that place',
        ),
        ('{"images": [', 'is not valid JSON: Expecting value at line 1, column 13.'),
        ('<!DOCTYPE html>', 'is not valid JSON: Expecting value at line 1, column 1.'),
        ('[1, 2]', "is JSON but not COCO instances: it holds a list, where an object with the keys 'images', 'annot"),
        ('{"images": [1], "shapes": 1}', "no list 'annotations', 'categories'; its keys are 'images', 'shapes'."),
        ('{"images": [], "annotations": [1], "categories": []}', 'holds no images and no categories: there is nothing'),
    ],
)
def test_files_that_are_not_coco_instances(coco, text, expected):
    coco.file.write_text(text)
    message = error_of(check_coco, coco.file, coco.images)
    assert str(coco.file) in message
    assert expected in message


def test_packed_annotation_file(coco):
    coco.file.write_bytes(b'\x1f\x8b\x08\x00\xff\xfe')
    assert 'is not text (invalid start byte at byte 1): is it a packed file?' in error_of(
        check_coco, coco.file, coco.images
    )


@pytest.mark.parametrize('name', ['images', 'annotations', 'categories'])
def test_no_entries(coco, name):
    coco.content[name] = []
    assert f'holds no {name}: there is nothing to train on.' in coco.error()


@pytest.mark.parametrize(
    ('name', 'field'), [(name, field) for name, fields in coco_checks.COCO_FIELDS.items() for field in fields]
)
def test_missing_fields(coco, name, field):
    del coco.content[name][1][field]
    number = len(coco.content[name])
    assert (
        f'1 of {number} {name} have no {field!r} of the right type, the first is {name}[1] without it' in coco.error()
    )


@pytest.mark.parametrize('name', ['images', 'annotations', 'categories'])
def test_shared_ids(coco, name):
    coco.content[name][1]['id'] = coco.content[name][0]['id']
    assert f'ids that several {name} share: {coco.content[name][0]["id"]} (1 in all). Number them anew' in coco.error()


def test_unknown_references(coco):
    coco.content['annotations'][3]['image_id'] = 99
    coco.content['annotations'][5]['image_id'] = 98
    message = coco.error()
    assert (
        '2 of 16 annotations refer to images that the file does not have: image_id 99, 98; its images have the ids'
        in message
    )
    coco.content['annotations'][3]['image_id'] = coco.content['annotations'][5]['image_id'] = 0
    coco.content['annotations'][0]['category_id'] = '1'
    message = coco.error()
    assert (
        "1 of 16 annotations refer to categories that the file does not have: category_id '1'; its categories"
        in message
    )
    assert 'its categories have the ids 1, 2. Remove these annotations, or add the categories.' in message


# ------------------------------------------------------------------------------------------------------------- classes


def test_config_without_metainfo(coco):
    """The commonest mistake: the run would look for COCO's names."""
    config = coco.config()
    del config['metainfo']
    message = error_of(check_dataset, config, 'val_dataloader.dataset')
    assert "val_dataloader.dataset sets no metainfo, so that the run would look for COCO's 80 class names" in message
    assert "80 of them, 'person', 'bicycle', " in message
    assert f'are not in {coco.file}. ' in message
    assert "Set metainfo=dict(classes=('fig', 'date')) in val_dataloader.dataset, in the other loaders too" in message
    assert "and num_classes=2 in the model's heads." in message


def test_class_names_that_the_file_lacks(coco):
    message = error_of(check_dataset, coco.config(metainfo={'classes': ('fig', 'Date')}))
    assert f"train_dataloader.dataset.metainfo names classes that {coco.file} does not have: 'Date'. " in message
    assert "The config has 'fig', 'Date'; the file has 'fig', 'date'." in message
    assert "Set metainfo=dict(classes=('fig', 'date')) in train_dataloader.dataset" in message


def test_class_names_in_another_order(coco):
    message = coco.error(classes=('date', 'fig'))
    assert 'has the classes in another order than' in message
    assert "'date', 'fig' instead of 'fig', 'date'." in message


def test_classes_left_out_and_classes_without_annotation_are_notes(coco):
    coco.content['categories'].append({'id': 3, 'name': 'nut'})
    notes = coco.check()
    assert notes == [f"{coco.file}: the config leaves out 'nut'; their annotations are not used."]
    notes = coco.check(classes=(*CLASSES, 'nut'))
    assert notes == [f"{coco.file}: no annotation of 'nut'."]


def test_two_categories_of_one_name(coco):
    coco.content['categories'][1]['name'] = 'fig'
    assert "several categories are named 'fig'. Give each a name of its own." in coco.error(classes=('fig',))


def test_a_single_class_without_its_comma(coco):
    message = error_of(check_dataset, coco.config(metainfo={'classes': 'fig'}))
    assert "train_dataloader.dataset.metainfo.classes is the string 'fig', not several names" in message
    assert "write the comma: metainfo=dict(classes=('fig',))." in message


def test_classes_from_a_file(coco):
    (coco.root / 'names.txt').write_text('fig\ndate\n')
    assert check_dataset(coco.config(metainfo={'classes': str(coco.root / 'names.txt')})) == []


@pytest.mark.parametrize(
    ('extra', 'written'),
    [({'classes': CLASSES}, 'classes=(...)'), ({'metainfo': {'CLASSES': CLASSES}}, 'metainfo=dict(CLASSES=(...))')],
)
def test_spellings_of_older_versions(coco, extra, written):
    message = error_of(check_dataset, coco.config(**extra))
    assert (
        f'train_dataloader.dataset has {written}, which today is not read: write metainfo=dict(classes=(...)).'
        in message
    )


# -------------------------------------------------------------------------------------------------- boxes, masks, sizes


@pytest.mark.parametrize(
    ('box', 'expected'),
    [
        (
            [2, 3, 0, 8],
            'boxes [x, y, width, height] are less than one pixel wide or high: [2, 3, 0, 8] (annotation 4).',
        ),
        ([2, 3, 8, -4], 'are less than one pixel wide or high: [2, 3, 8, -4] (annotation 4).'),
        ([40, 3, 5, 5], 'lie wholly outside their pictures: [40, 3, 5, 5] (annotation 4).'),
        ([-9, 3, 5, 5], 'lie wholly outside their pictures: [-9, 3, 5, 5] (annotation 4).'),
        ([2, 3, 8], 'boxes are not four numbers [x, y, width, height]: [2, 3, 8] (annotation 4).'),
        ([2, 3, 8, 'x'], "are not four numbers [x, y, width, height]: [2, 3, 8, 'x'] (annotation 4)."),
        ([2, 3, 8, float('nan')], 'are not four numbers [x, y, width, height]: [2, 3, 8, nan] (annotation 4).'),
    ],
)
def test_bad_boxes(coco, box, expected):
    coco.content['annotations'][4]['bbox'] = box
    message = coco.error()
    assert f'{coco.file}: 1 of 16 boxes' in message
    assert expected in message


def test_many_bad_boxes_are_counted(coco):
    for annotation in coco.content['annotations'][:5]:
        annotation['bbox'] = [1, 1, 0, 0]
    message = coco.error()
    assert '5 of 16 boxes' in message
    assert message.count('(annotation ') == 3
    assert 'MMDetection would leave them out in silence: mend or remove them.' in message


def test_few_bad_boxes_are_a_note(coco):
    template = coco.content['annotations'][0]
    coco.content['annotations'] += [copy.deepcopy(template) | {'id': 100 + i} for i in range(200)]
    coco.content['annotations'][4]['bbox'] = [2, 3, 0, 8]
    notes = coco.check()
    assert len(notes) == 1
    assert '1 of 216 boxes' in notes[0]
    assert notes[0].endswith('They are left out.')


def test_areas_of_zero(coco):
    coco.content['annotations'][4]['area'] = 0
    assert (
        "1 of 16 boxes [x, y, width, height] have the field 'area' at 0: [2, 3, 10, 8] (annotation 4)." in coco.error()
    )


def test_corner_boxes(coco):
    for annotation in coco.content['annotations']:
        annotation['bbox'] = [20, 10, 30, 20]
    message = coco.error()
    assert 'more than half of the boxes reach out of their pictures' in message
    assert 'are these [x1, y1, x2, y2]? Then write [x1, y1, x2 - x1, y2 - y1].' in message


def test_relative_boxes(coco):
    for annotation in coco.content['annotations']:
        annotation['bbox'] = [0.1, 0.2, 0.5, 0.4]
    assert 'They look like shares of the picture; COCO wants pixels.' in coco.error()


def test_missing_masks(coco):
    coco.content['annotations'][2]['segmentation'] = []
    del coco.content['annotations'][5]['segmentation']
    assert coco.check() == []
    message = coco.error(masks=True)
    assert (
        '2 of 16 annotations have no segmentation (ids 2, 5), and the pipeline loads masks (with_mask=True)' in message
    )
    pipeline = [{'type': 'LoadImageFromFile'}, {'type': 'LoadAnnotations', 'with_bbox': True}]
    assert check_dataset(coco.config(pipeline=pipeline)) == []
    pipeline[1]['with_mask'] = True
    assert 'have no segmentation' in error_of(check_dataset, coco.config(pipeline=pipeline))


def test_sizes_that_differ_from_the_pictures(coco):
    save_picture(coco.images / '3.jpg', size=(20, 10))
    message = coco.error()
    assert f'1 of 8 pictures have another width x height than {coco.file} says' in message
    assert f'{coco.images / "3.jpg"} is 20x10, not 32x24. Boxes and masks would be misplaced.' in message


def test_a_rotated_photo(coco):
    """The size in the file is the one before the EXIF rotation, the picture is loaded after it."""
    exif = Image.Exif()
    exif[0x0112] = 6
    save_picture(coco.images / '3.jpg', exif=exif)
    assert f'{coco.images / "3.jpg"} is 24x32, not 32x24.' in coco.error()


# ------------------------------------------------------------------------------------------------------------ pictures


def test_missing_image_folder(coco):
    message = error_of(check_dataset, coco.config(data_prefix={'img': 'photos/'}))
    assert f'image folder not found: {coco.root}/photos/, from train_dataloader.dataset.data_prefix.img. ' in message


def test_missing_images(coco):
    for index in range(6):
        (coco.images / f'{index}.jpg').unlink()
    message = coco.error()
    assert f'6 of 8 images named in {coco.file} are missing: {coco.images / "0.jpg"}, ' in message
    assert '4.jpg, ... (6). ' in message
    assert '5.jpg' not in message
    assert f'The folder {coco.images} holds 6.jpg, 7.jpg.' in message
    assert 'Add the files, or correct the folders and suffixes in train_dataloader.dataset.' in message


def test_missing_images_that_exist_under_another_suffix(coco):
    (coco.images / '2.jpg').rename(coco.images / '2.JPG')
    assert 'Instead of 2.jpg there is 2.JPG: names must agree letter by letter, suffix included.' in coco.error()


def test_images_in_folders_of_their_own(coco):
    (coco.images / 'a').mkdir()
    (coco.images / '2.jpg').rename(coco.images / 'a/2.jpg')
    coco.content['images'][2]['file_name'] = 'a/2.jpg'
    assert coco.check() == []
    coco.content['images'][2]['file_name'] = 'b/2.jpg'
    assert f'The folder {coco.images}/b holds nothing, or does not exist.' in coco.error()


def test_each_folder_is_listed_once(coco, monkeypatch):
    listed = []
    scandir = files.os.scandir
    monkeypatch.setattr(files.os, 'scandir', lambda path: listed.append(str(path)) or scandir(path))
    assert coco.check() == []
    assert listed.count(str(coco.images)) == 1


def cut(path, share=0.6):
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])


BREAKAGES = {
    'empty': lambda path: path.write_bytes(b''),
    'a JPEG that is cut short': cut,
    'a PNG that is cut short': lambda path: (save_picture(path, format='PNG'), cut(path)),
    'a web page, not a picture': lambda path: path.write_bytes(b'\n<!DOCTYPE html><html>404</html>'),
    'only zeros where it should begin': lambda path: path.write_bytes(bytes(5000)),
    'a Git LFS pointer, not the picture: git lfs pull': lambda path: path.write_bytes(
        b'version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n'
    ),
}


@pytest.mark.parametrize('defect', BREAKAGES)
def test_broken_pictures(coco, segmentation, defect):
    BREAKAGES[defect](coco.images / '5.jpg')
    expected = f'1 of 8 images are broken: {coco.images / "5.jpg"} ({defect}). Copy or download them'
    assert expected in coco.error()
    BREAKAGES[defect](segmentation.images / '5.jpg')
    assert f'1 of 6 images are broken: {segmentation.images / "5.jpg"} ({defect})' in segmentation.error()


@pytest.mark.parametrize('trailer', [b'', bytes(2000), b'maker note' * 50])
@pytest.mark.parametrize('form', ['JPEG', 'PNG'])
def test_pictures_with_a_trailer_pass(coco, form, trailer):
    path = coco.images / '5.jpg'
    save_picture(path, format=form)
    path.write_bytes(path.read_bytes() + trailer)
    assert coco.check() == []


def test_annotations_that_did_not_change_are_read_once(coco, monkeypatch, tmp_path):
    monkeypatch.setenv('CONVNEXT_DENSE_CACHE', str(tmp_path / 'cache'))
    coco.save()
    read = []
    original = coco_checks._read_coco
    monkeypatch.setattr(coco_checks, '_read_coco', lambda *options: read.append(options) or original(*options))
    first = check_coco(coco.file, coco.images, classes=CLASSES)
    assert check_coco(coco.file, coco.images, classes=CLASSES) == first
    assert len(read) == 1
    check_coco(coco.file, coco.images, classes=None)  # another question
    assert len(read) == 2
    (coco.images / '6.jpg').write_bytes(b'')
    with pytest.raises(UserError, match='6.jpg'):
        check_coco(coco.file, coco.images, classes=CLASSES)
    assert len(read) == 3


def test_every_picture_is_looked_at_once(coco, monkeypatch, tmp_path):
    monkeypatch.setenv('CONVNEXT_DENSE_CACHE', str(tmp_path / 'cache'))
    looked = []
    original = files.find_defect
    monkeypatch.setattr(files, 'find_defect', lambda path: looked.append(path) or original(path))
    assert coco.check() == []
    assert len(looked) == len(set(looked)) == 8
    assert coco.check() == []
    assert len(looked) == 8  # what did not change is remembered
    (coco.images / '6.jpg').write_bytes(b'')
    assert '1 of 8 images are broken' in coco.error()
    assert len(looked) == 9


def test_the_splits_of_one_folder_are_remembered_together(monkeypatch, tmp_path):
    monkeypatch.setenv('CONVNEXT_DENSE_CACHE', str(tmp_path / 'cache'))
    looked = []
    for name in 'abcd':
        (tmp_path / name).write_text(name)
    for split in ('ab', 'cd', 'ab'):
        found = look_at([str(tmp_path / name) for name in split], lambda path: looked.append(path) or path[-1], 'files')
        assert found == list(split)
    assert len(looked) == 4


# -------------------------------------------------------------------------------------------------------- segmentation


@pytest.mark.parametrize(('name', 'what'), [('img_path', 'image'), ('seg_map_path', 'label map')])
def test_missing_segmentation_folders(segmentation, name, what):
    prefix = segmentation.config()['data_prefix'] | {name: 'nope'}
    message = error_of(check_dataset, segmentation.config(data_prefix=prefix))
    assert (
        f'{what} folder not found: {segmentation.root}/nope, from train_dataloader.dataset.data_prefix.{name}.'
        in message
    )
    assert '--cfg-options train_dataloader.dataset.data_root=' in message


def test_missing_label_map(segmentation):
    (segmentation.labels / '4.png').unlink()
    message = segmentation.error()
    assert (
        f'1 of 6 label maps of the images in {segmentation.images} are missing: {segmentation.labels / "4.png"}.'
        in message
    )
    assert f'The folder {segmentation.labels} holds 0.png, 1.png, 2.png, 3.png, 5.png.' in message


def test_label_maps_of_another_suffix(segmentation):
    message = segmentation.error(seg_map_suffix='_labels.png')
    assert '6 of 6 label maps' in message
    assert f'{segmentation.labels / "0_labels.png"}, ' in message


def test_wrong_image_suffix(segmentation):
    message = error_of(check_dataset, segmentation.config(img_suffix='.png'))
    assert (
        f"{segmentation.images} holds no picture whose name ends in '.png'; it has '.jpg'. Set img_suffix=" in message
    )


def test_values_out_of_range(segmentation):
    segmentation.write(2, np.resize([0, 1, 7, 9], (HEIGHT, WIDTH)))
    message = segmentation.error()
    assert (
        f'{segmentation.labels / "2.png"} holds the value 7, 9; allowed are 0 to 2, and 255 for unlabelled ' in message
    )
    assert '(3 classes, reduce_zero_label=False). 1 of 6 label maps have such values.' in message
    assert message.endswith('Correct the label maps, or the classes in the config.')


def test_reduce_zero_label_is_taken_into_account(segmentation):
    for index in range(6):
        segmentation.write(index, np.resize([0, 1, 2, 3, 255], (HEIGHT, WIDTH)))
    assert segmentation.check(reduce_zero_label=True) == []
    message = segmentation.error()
    assert 'holds the value 3; allowed are 0 to 2' in message
    assert message.endswith('set reduce_zero_label=True in train_dataloader.dataset.')
    message = segmentation.error(reduce_zero_label=True, num_classes=2)
    assert (
        'holds the value 3; allowed are 1 to 2, and 0 and 255 for unlabelled (2 classes, reduce_zero_label=True)'
        in message
    )


def test_ignore_index_is_allowed(segmentation):
    segmentation.write(0, np.resize([0, 1, 100], (HEIGHT, WIDTH)))
    assert 'holds the value 100' in segmentation.error()
    assert segmentation.check(ignore_index=100) == []


def test_black_and_white_label_maps(segmentation):
    for index in range(6):
        segmentation.write(index, np.resize([0, 255], (HEIGHT, WIDTH)))
    message = segmentation.error(num_classes=2)
    assert 'the 6 label maps hold the values 0 and 255 only, and 255 is ignored' in message
    assert 'Write the class numbers, 0 and 1, in the place of black and white.' in message
    message = segmentation.error(num_classes=2, reduce_zero_label=True)
    assert 'the 6 label maps have no labelled pixel, only 0, 255' in message


def test_colour_label_map(segmentation):
    save_picture(segmentation.labels / '3.png')
    message = segmentation.error()
    assert f'{segmentation.labels / "3.png"} is a colour picture, shape (24, 32, 3)' in message
    assert 'Map the colours to class numbers' in message


def test_palette_label_map_passes(segmentation):
    indices = Image.fromarray(np.resize(np.array([0, 1, 2], np.uint8), (HEIGHT, WIDTH)))
    indices.putpalette([0, 0, 0, 255, 0, 0, 0, 255, 0])
    indices.save(segmentation.labels / '3.png')
    with Image.open(segmentation.labels / '3.png') as saved:
        assert saved.mode == 'P'
    assert segmentation.check() == []


def test_sixteen_bit_label_map(segmentation):
    Image.fromarray(np.full((HEIGHT, WIDTH), 300, np.uint16)).save(segmentation.labels / '3.png')
    assert 'holds the value 300; allowed are 0 to 2' in segmentation.error()


def test_label_map_of_another_size(segmentation):
    segmentation.write(1, np.zeros((10, 20)))
    message = segmentation.error()
    assert f'{segmentation.labels / "1.png"} is 20x10 (width x height), and its picture' in message
    assert 'is 32x24 once loaded, EXIF rotation included.' in message


def test_unreadable_label_map(segmentation):
    (segmentation.labels / '1.png').write_text('no picture')
    assert f'label map {segmentation.labels / "1.png"} cannot be read: ' in segmentation.error()
    (segmentation.labels / '1.png').write_bytes(b'')
    assert f'{segmentation.labels / "1.png"} (empty)' in segmentation.error()


def test_a_label_map_that_is_damaged_in_its_middle(segmentation):
    path = segmentation.labels / '1.png'
    segmentation.write(1, np.random.default_rng(0).integers(0, 256, (400, 400)))  # in several parts
    content = bytearray(path.read_bytes())
    place = content.rindex(b'IDAT')
    assert place > content.index(b'IDAT')
    content[place : place + 4] = bytes(4)
    path.write_bytes(content)
    assert f'label map {path} cannot be read: ' in error_of(read_values, path)


def test_names_from_a_file(segmentation):
    names = segmentation.root / 'train.txt'
    assert 'train.txt not found: the list of names that' in error_of(
        check_dataset, segmentation.config(ann_file='train.txt')
    )
    names.write_text('')
    assert 'is empty: write one name a line, without suffix.' in error_of(
        check_dataset, segmentation.config(ann_file='train.txt')
    )
    names.write_text('0\n3\n')
    (segmentation.labels / '1.png').unlink()
    assert check_dataset(segmentation.config(ann_file='train.txt')) == []
    names.write_text('0\n9\n')
    assert f'1 of 2 images named in {names} are missing: {segmentation.images / "9.jpg"}.' in error_of(
        check_dataset, segmentation.config(ann_file='train.txt')
    )


def test_classes_unknown_is_a_note(segmentation):
    assert segmentation.check(num_classes=None) == [
        'train_dataloader.dataset names no classes: the values of the label maps were not checked.'
    ]


def test_every_label_map_is_read(segmentation):
    segmentation.write(1, np.full((HEIGHT, WIDTH), 9))
    segmentation.write(2, np.full((HEIGHT, WIDTH), 9))
    assert '2 of 6 label maps' in segmentation.error()


# ------------------------------------------------------------------------------------------------------------- configs


def test_wrappers_are_opened(coco, segmentation):
    broken = coco.config(ann_file='nope.json')
    repeated = {'type': 'RepeatDataset', 'times': 3, 'dataset': broken}
    assert '--cfg-options train_dataloader.dataset.dataset.data_root=' in error_of(check_dataset, repeated)
    joined = {'type': 'ConcatDataset', 'datasets': [coco.config(), segmentation.config(), repeated]}
    assert '--cfg-options a.datasets.2.dataset.data_root=' in error_of(check_dataset, joined, 'a')
    joined['datasets'].pop()
    assert check_dataset(joined) == []


@pytest.mark.parametrize(
    'dataset',
    [
        None,
        {'type': 'ListedLabels'},
        {'type': 'ShapesInstances', 'data_root': 'x'},
        {'type': 'ShapesLabels'},
        object(),
    ],
)
def test_what_this_package_writes_is_passed_over(dataset):
    assert check_dataset(dataset) == []


def test_other_types_are_a_note():
    (note,) = check_dataset({'type': 'CrowdHumanDataset'}, 'train_dataloader.dataset')
    assert 'train_dataloader.dataset' in note
    assert 'CrowdHumanDataset' in note


@pytest.mark.parametrize(
    'remote',
    [
        {'data_root': 's3://bucket/coco'},
        {'ann_file': 'https://host/x.json'},
        {'data_prefix': {'img': 's3://bucket/train'}},
        {'backend_args': {'backend': 'petrel'}},
    ],
)
def test_remote_data_is_not_checked(coco, remote):
    notes = check_dataset(coco.config(**remote))
    assert notes == ['train_dataloader.dataset was not checked: its files are not on a local disk.']
    assert check_dataset(coco.config(backend_args={'backend': 'local'})) == []


def test_prefix_of_the_other_library(coco, segmentation):
    message = error_of(check_dataset, coco.config(data_prefix={'img_path': 'images'}))
    assert "data_prefix has no 'img', which CocoDataset reads; it has 'img_path'. Set data_prefix=dict(img=" in message
    message = error_of(check_dataset, segmentation.config(data_prefix={'img': 'img'}))
    assert "data_prefix has no 'img_path', which BaseSegDataset reads; it has 'img'." in message
    message = error_of(check_dataset, coco.config(ann_file=''))
    assert message == "train_dataloader.dataset names no annotation file: set ann_file='annotations/....json' there."


def test_type_given_as_a_class(coco):
    from mmdet.datasets import CocoDataset

    assert 'annotation file not found' in error_of(check_dataset, coco.config(type=CocoDataset, ann_file='nope.json'))


def test_the_table_of_segmentation_types_is_upstreams(tmp_path):
    import mmseg.datasets

    for name, ours in configs.SEGMENTATION_TYPES.items():
        upstream = getattr(mmseg.datasets, name)
        # Some of them want a list of names and an existing folder at once.
        dataset = upstream(ann_file=__file__, data_prefix={'img_path': str(tmp_path)}, lazy_init=True)
        assert (dataset.img_suffix, dataset.seg_map_suffix, dataset.reduce_zero_label) == ours[:3], name
        assert len(upstream.METAINFO.get('classes', ())) == (ours.num_classes or 0), name


def test_a_test_set_needs_no_annotations(coco):
    del coco.content['annotations']
    coco.save()
    assert "no list 'annotations'" in error_of(check_coco, coco.file, coco.images)
    assert check_coco(coco.file, coco.images, is_labelled=False) == []
    test_mode = dict(
        type='CocoDataset',
        ann_file=str(coco.file),
        data_prefix=dict(img=str(coco.images)),
        metainfo=dict(classes=CLASSES),
        test_mode=True,
    )
    (note,) = check_dataset(test_mode)
    assert "no annotation of 'fig', 'date'" in note


@pytest.mark.parametrize(
    ('name', 'entry', 'message'),
    [
        ('images', 'a.jpg', "images[0] is 'a.jpg', where an object with 'id', 'file_name'"),
        ('images', dict(id=0, file_name='0.jpg', width='ten', height=24), "images[0] with 'ten'"),
        ('images', dict(id=[0], file_name='0.jpg', width=32, height=24), 'images[0] with [0]'),
        ('images', dict(id=0, file_name=7, width=32, height=24), 'images[0] with 7'),
        ('categories', dict(id=1, name=['fig']), "categories[0] with ['fig']"),
    ],
)
def test_entries_of_the_wrong_type(coco, name, entry, message):
    coco.content[name][0] = entry
    coco.save()
    assert message in error_of(check_coco, coco.file, coco.images)
