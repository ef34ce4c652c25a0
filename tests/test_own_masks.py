"""Label maps of a user: which image each is of, what its values mean, and what is trained on."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from convnext_dense import UserError
from convnext_dense.configs import load_config
from convnext_dense.data import import_data
from convnext_dense.data.formats import masks, recognise
from convnext_dense.data.formats.class_files import parse_classes
from convnext_dense.train.own_data import prepare_data

pytestmark = pytest.mark.filterwarnings('ignore:For binary segmentation:UserWarning')  # MMSegmentation's advice
SIDE = 48
COLOURS = np.array([(0, 0, 0), (128, 0, 0), (0, 128, 0), (0, 0, 128)], np.uint8)


def squares(seed, values=(1, 2, 3), background=0):
    """Return a map of a background with a square for each value, at places of its own."""
    drawn = np.full((SIDE, SIDE), background, np.uint8)
    for value, top in zip(values, np.random.default_rng(seed).permutation(3) * 15 + seed % 4, strict=False):
        drawn[top : top + 12, 3 + 7 * (seed % 4) : 21 + 7 * (seed % 4)] = value
    return drawn


def save(file, values, **options):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(file, **options)


def write(
    root, image='images/{}.png', label_map='masks/{}.png', change=lambda drawn: drawn, values=(1, 2, 3), **options
):
    """Write four images and their label maps; return name of the image -> its map as it was drawn."""
    truth = {}
    for i in range(4):
        drawn = squares(i, values)
        save(root / image.format(i), np.full((SIDE, SIDE, 3), i, np.uint8))
        save(root / label_map.format(i), np.asarray(change(drawn)), **options)
        truth[image.format(i)] = drawn
    return truth


def read_back(root, out, **options):
    """Return what an import found, and name of the image -> label map that is trained on."""
    found = import_data(root, out, task='seg', **options)
    maps = {}
    for file in found.files.values():
        for entry in json.loads(file.read_text())['data_list']:
            with Image.open(found.root / entry['seg_map_path']) as image:  # as MMSegmentation reads it
                maps[entry['img_path']] = np.array(image)
    return found, maps


def assert_equal(maps, truth):
    assert sorted(maps) == sorted(truth)
    for name, values in truth.items():
        np.testing.assert_array_equal(maps[name], values, name)


def white(drawn):
    return (drawn > 0).astype(np.uint8) * 255


def binary(truth):
    return {name: (values > 0).astype(np.uint8) for name, values in truth.items()}


# Which label map an image has


@pytest.mark.parametrize(
    ('image', 'label_map'),
    [
        ('train/{}.png', 'train_masks/{}_mask.gif'),
        ('images/{}.jpg', 'masks/{}.jpg'),
        ('kaggle/case/x_{}.tif', 'kaggle/case/x_{}_mask.tif'),
        ('train/{}_sat.jpg', 'train/{}_mask.png'),
        ('images/img_{}.png', 'masks/mask_{}.png'),
        ('face_mask_data/images/{}.png', 'face_mask_data/masks/{}.png'),
        ('images/{}_l.png', 'masks/{}_l.png'),
        ('701_StillsRaw_full/x_{}.png', 'LabeledApproved_full/x_{}_L.png'),
        ('labelled/{}.jpg', 'labelled/{}_mask.png'),
        ('annotated/{}.jpg', 'masks/{}.png'),
        ('images/img_{}.png', 'masks/img_{}.png'),
        ('images/mask_{}.png', 'masks/mask_{}.png'),
        ('img_{}.png', 'mask_{}.png'),
    ],
)
def test_label_maps_are_found_by_the_names_that_people_give(image, label_map, tmp_path):
    truth = write(tmp_path / 'd', image, label_map, white)
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert len(found.classes) == 2
    assert_equal(maps, binary(truth))


@pytest.mark.parametrize(
    'places',
    [
        [('cam1/images/{}.png', 'cam1/masks/{}.png'), ('cam2/images/{}.png', 'cam2/masks/{}.png')],
        [('images/a/cam/{}.png', 'masks/a/cam/{}.png'), ('images/b/cam/{}.png', 'masks/b/cam/{}.png')],
        [('train/{}.png', 'trainannot/{}.png'), ('val/{}.png', 'valannot/{}.png')],
    ],
    ids=['a folder for each camera', 'deep folders', 'splits'],
)
def test_images_of_one_name_have_the_maps_of_their_own_folders(places, tmp_path):
    truth = {}
    for number, (image, label_map) in enumerate(places):
        for i in range(3):
            drawn = squares(i + number)
            save(tmp_path / 'd' / image.format(i), np.full((SIDE, SIDE, 3), i, np.uint8))
            save(tmp_path / 'd' / label_map.format(i), drawn)
            truth[image.format(i)] = drawn
    _, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert_equal(maps, truth)


def test_a_label_map_is_never_lent_to_an_image_that_has_none(tmp_path):
    """Neither across cameras nor across splits, whose numbers begin anew."""
    truth = write(tmp_path / 'd', 'cam1/images/{}.png', 'cam1/masks/{}.png')
    save(tmp_path / 'd/cam2/images/0.png', np.zeros((SIDE, SIDE, 3), np.uint8))
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert_equal(maps, truth)
    assert any('1 images that have no label map' in note and 'cam2' in note for note in found.notes)
    write(tmp_path / 'e', 'train/{}.png', 'trainannot/{}.png')
    save(tmp_path / 'e/test/0.png', np.zeros((SIDE, SIDE, 3), np.uint8))
    assert not any('test' in name for name in read_back(tmp_path / 'e', tmp_path / 'out2')[1])


@pytest.mark.parametrize(
    ('classes', 'pictures'),
    [
        ('labels/masks/{}.png', 'labels/colormaps/{}.png'),
        ('semantic_masks/{}.png', 'instance_masks/{}.png'),
        ('SegmentationClass/{}.png', 'SegmentationObject/{}.png'),
        ('gtFine/{}_gtFine_labelTrainIds.png', 'gtFine/{}_gtFine_labelIds.png'),
        ('gtFine/{}_gtFine_labelIds.png', 'gtFine/{}_gtFine_color.png'),
    ],
)
def test_of_several_kinds_the_one_of_classes_is_meant(classes, pictures, tmp_path):
    write(tmp_path / 'd', 'images/{}.png', pictures, lambda drawn: drawn * 7 % 5)
    truth = write(tmp_path / 'd', 'images/{}.png', classes)
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert_equal(maps, truth)
    assert not any('no image' in note for note in found.notes)


@pytest.mark.parametrize(
    'more',
    [('images/{}.png', 'gtCoarse/{}.png'), ('images/{}.jpg', 'masks/{}.png'), ('images/{}.png', 'masks/{}_mask_1.png')],
    ids=['two label maps', 'two images', 'two objects'],
)
def test_several_that_fit_equally_well_are_named(more, tmp_path):
    write(tmp_path / 'd', 'images/{}.png', 'masks/{}_mask.png')
    write(tmp_path / 'd', *more)
    with pytest.raises(UserError) as error:
        import_data(tmp_path / 'd', tmp_path / 'out', task='seg')
    assert all(word in str(error.value) for word in ('equally well', '0', '--images', 'draw them into one'))


def test_a_folder_of_objects_for_each_image_is_explained(tmp_path):
    for i in range(3):
        save(tmp_path / f'id{i}/images/id{i}.png', np.zeros((SIDE, SIDE, 3), np.uint8))
        for j in range(2):
            save(tmp_path / f'id{i}/masks/m{i}{j}.png', white(squares(i)))
    with pytest.raises(UserError) as error:
        recognise(tmp_path)
    assert all(word in str(error.value) for word in ('3 images', '6 label maps', 'no names agree', 'into one'))


def test_files_without_a_partner_are_counted_and_named(tmp_path):
    write(tmp_path)
    (tmp_path / 'masks/1.png').unlink()
    (tmp_path / 'images/2.png').unlink()
    notes = '\n'.join(masks.read(tmp_path).notes)
    for words in ('1 images that have no label map', 'images/1.png', '1 label maps that have no image', 'masks/2.png'):
        assert words in notes


@pytest.mark.parametrize(
    ('lists', 'expected'),
    [
        ({'Segmentation/train': '0\n3\n', 'Segmentation/val': '1\n', 'Segmentation/trainval': '0\n1\n3\n'}, 1),
        ({'Segmentation/Train': '0\n3\n', 'Segmentation/Validation': '1\n', 'Main/train': '1\n', 'Main/val': '0\n'}, 1),
        ({'Segmentation/train': 'JPEGImages/0.png\n3.png\n', 'Segmentation/val': 'JPEGImages/1.png M/1.png\n'}, 1),
        ({'Main/train': '0  1\n3 -1\n', 'Main/val': '1  1\n'}, 1),
        ({'Segmentation/default': '0\n'}, 0),
    ],
    ids=['VOC', 'CVAT', 'paths', 'flags', 'no split'],
)
def test_lists_tell_the_splits(lists, expected, tmp_path):
    write(tmp_path / 'd', 'JPEGImages/{}.png', 'SegmentationClass/{}.png')
    for name, text in lists.items():
        file = tmp_path / f'd/ImageSets/{name}.txt'
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    found = import_data(tmp_path / 'd', tmp_path / 'out', task='seg')
    names = {split: sorted(path.stem for path in paths) for split, paths in found.paths.items()}
    assert (names == {'train': ['0', '3'], 'val': ['1']}) == bool(expected)
    assert any('1 images that no list' in note for note in found.notes) == bool(expected)


# What the values mean


@pytest.mark.parametrize('text', ['background\nlesion\n', '0 background\n1 lesion\n', '0 background\n255 lesion\n'])
def test_white_is_the_second_of_two_classes(text, tmp_path):
    truth = write(tmp_path / 'd', change=white)
    (tmp_path / 'd/classes.txt').write_text(text)
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert found.classes == ['background', 'lesion']
    assert_equal(maps, binary(truth))


@pytest.mark.parametrize('text', ['lesion\n', 'background\nlesion\nvein\n', '0 background\n1 lesion\n2 vein\n'])
def test_white_asks_where_there_are_not_two_classes(text, tmp_path):
    write(tmp_path, change=white)
    (tmp_path / 'classes.txt').write_text(text)
    with pytest.raises(UserError, match='0 and 255 alone.*lesion.*255 foreground'):
        masks.read(tmp_path)


def test_as_many_names_as_values_far_apart(tmp_path):
    truth = write(tmp_path / 'd', change=lambda drawn: np.array([0, 100, 200, 255], np.uint8)[drawn])
    (tmp_path / 'd/classes.txt').write_text('sky\nroad\ntree\ncar\n')
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert found.classes == ['sky', 'road', 'tree', 'car']
    assert_equal(maps, truth)


def test_clear_steps_of_grey_keep_white_and_classes_keep_it_unlabelled(tmp_path):
    truth = write(tmp_path / 'd', change=lambda drawn: np.array([0, 128, 255, 255], np.uint8)[drawn])
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert found.classes == ['value_0', 'value_128', 'value_255']
    assert_equal(maps, {name: np.minimum(values, 2) for name, values in truth.items()})
    write(tmp_path / 'e', change=lambda drawn: np.array([0, 1, 2, 255], np.uint8)[drawn])
    found = masks.read(tmp_path / 'e')
    assert found.classes == ['class_0', 'class_1', 'class_2']
    assert any('255 is unlabelled: 9' in note for note in found.notes)


NAMES = ['wall', 'building', 'sky', *(f'thing {i}' for i in range(4, 151))]


def test_names_that_may_count_from_either_end_are_pointed_out(tmp_path):
    """150 names as ADE20K has them, of which a few are there: whether 0 is the first or unlabelled cannot be known."""
    truth = write(tmp_path / 'd')
    (tmp_path / 'd/classes.txt').write_text('\n'.join(NAMES))
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert_equal(maps, truth)
    assert any('0 is taken as wall, 1 as building' in note and 'void' in note for note in found.notes)
    (tmp_path / 'd/classes.txt').write_text('\n'.join(['void', *NAMES]))
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert found.classes == NAMES
    assert_equal(maps, {name: values - 1 for name, values in truth.items()})  # 0 - 1 is 255
    assert not any('CHECK' in note for note in found.notes)
    (tmp_path / 'd/classes.txt').write_text('\n'.join(f'{i} {name}' for i, name in enumerate(NAMES, 1)))
    found, again = read_back(tmp_path / 'd', tmp_path / 'out')
    assert_equal(again, maps)
    assert any('count from 1' in note for note in found.notes)


@pytest.mark.parametrize('names', [['background', *NAMES], ['sky', 'road', 'tree', 'car']])
def test_names_that_are_clear_are_not_pointed_out(names, tmp_path):
    write(tmp_path)
    found = masks.read(tmp_path, names=names)
    assert found.classes == names
    assert found.is_named
    assert not any('CHECK' in note for note in found.notes)


def test_names_of_the_user_count_before_a_file(tmp_path):
    root = tmp_path / 'd'
    write(root)
    (root / 'classes.txt').write_text('a\nb\nc\nd\n')
    assert masks.read(root, names=NAMES).classes == NAMES
    with pytest.raises(UserError, match='--classes names road more than once'):
        masks.read(root, names=['road', 'road', 'car', 'tree'])
    found, _ = read_back(root, tmp_path / 'out', classes=['road', 'tree', 'car'])
    assert found.reduce_zero_label
    assert any('0 is taken as unlabelled' in note for note in found.notes)


def test_a_name_twice_is_refused_and_two_values_of_a_class_are_not(tmp_path):
    truth = write(tmp_path / 'd')
    (tmp_path / 'd/classes.txt').write_text('background\ncat\nbackground\ndog\n')
    with pytest.raises(UserError, match='background more than once'):
        masks.read(tmp_path / 'd')
    (tmp_path / 'd/classes.txt').write_text('0 background\n1 cat\n2 background\n3 dog\n')
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert found.classes == ['background', 'cat', 'dog']
    assert_equal(maps, {name: np.array([0, 1, 0, 2], np.uint8)[values] for name, values in truth.items()})


def test_folders_of_the_user_are_looked_for_in_the_data_too(tmp_path):
    truth = write(tmp_path / 'd', 'rgb/{}.png', 'classids/{}.png')
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out', images='rgb', labels='classids', classes=NAMES)
    assert found.classes == NAMES
    assert_equal(maps, truth)
    assert not (tmp_path / 'out/labels').exists()  # the user's own maps are used


# Colours


@pytest.mark.parametrize('text', [None, 'name,r,g,b\nbackground,0,0,0\ncat,128,0,0\ndog,0,128,0\nbird,0,0,128\n'])
def test_an_image_of_background_alone_among_colours(text, tmp_path):
    truth = write(tmp_path / 'd', change=lambda drawn: COLOURS[drawn])
    save(tmp_path / 'd/masks/3.png', np.zeros((SIDE, SIDE), np.uint8))
    truth['images/3.png'] = np.zeros((SIDE, SIDE), np.uint8)
    if text:
        (tmp_path / 'd/class_dict.csv').write_text(text)
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert len(set(found.classes)) == 4
    numbers = [found.palette.index(tuple(map(int, colour))) for colour in COLOURS]
    assert_equal(maps, {name: np.array(numbers, np.uint8)[values] for name, values in truth.items()})


def as_palette(drawn):
    image = Image.fromarray(drawn).convert('P')
    image.putpalette(COLOURS.ravel().tolist())
    return image


def test_colours_of_a_palette_are_those_of_the_file(tmp_path):
    truth = write(tmp_path / 'd')
    for i in range(4):
        as_palette(truth[f'images/{i}.png']).save(tmp_path / f'd/masks/{i}.png')
    text = '# label:color_rgb:parts:actions\nbackground:0,0,0::\nbird:0,0,128::\ncat:128,0,0::\ndog:0,128,0::\n'
    (tmp_path / 'd/labelmap.txt').write_text(text)
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert found.classes == ['background', 'bird', 'cat', 'dog']
    assert_equal(maps, {name: np.array([0, 2, 3, 1], np.uint8)[values] for name, values in truth.items()})


@pytest.mark.parametrize(
    ('mode', 'name'), [('L', 'class_dict.csv'), ('1', 'class_dict.csv'), ('RGB', 'label_colors.txt')]
)
def test_black_and_white_with_colours_in_the_file(mode, name, tmp_path):
    truth = write(tmp_path / 'd', change=lambda drawn: Image.fromarray(white(drawn)))
    for file in (tmp_path / 'd/masks').iterdir():
        Image.open(file).convert(mode).save(file)
    texts = {'class_dict.csv': 'name,r,g,b\nbackground,0,0,0\nlesion,255,255,255\n'}
    (tmp_path / 'd' / name).write_text(texts.get(name, '0 0 0\tbackground\n255 255 255\t\tlesion\n'))
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert found.classes == ['background', 'lesion']
    assert_equal(maps, binary(truth))


def test_a_file_without_what_the_maps_have_says_so(tmp_path):
    write(tmp_path, change=lambda drawn: COLOURS[drawn])
    (tmp_path / 'classes.txt').write_text('0 background\n1 cat\n2 dog\n3 bird\n')
    with pytest.raises(UserError, match='it names no colours'):
        masks.read(tmp_path)


# Files of classes


@pytest.mark.parametrize(
    ('text', 'names', 'numbers'),
    [
        ('background\nlevel 1\nlevel 2\n', ['background', 'level 1', 'level 2'], {}),
        ('level 0\nlevel 1\nlevel 2\n', ['level 0', 'level 1', 'level 2'], {}),
        ('__ignore__\n_background_\ncat\n', ['_background_', 'cat'], {}),  # of LabelMe, which counts from -1
        ('road 0\ncar 1\n', ['road', 'car'], {0: 'road', 1: 'car'}),
        ('4 road\n5 level 2\n', ['road', 'level 2'], {4: 'road', 5: 'level 2'}),
        ('0 road 128 64 128\n', ['road'], {0: 'road'}),
        ('background,traffic light,dog\n', ['background', 'traffic light', 'dog'], {}),
        ('"sky"\n\n"traffic light"\n', ['sky', 'traffic light'], {}),
        ('id,name,r,g,b\n7,road,128,64,128\n', ['road'], {7: 'road'}),
    ],
)
def test_lines_of_classes(text, names, numbers):
    found = parse_classes(text.splitlines())
    assert (found.names, found.numbers) == (names, numbers)


@pytest.mark.parametrize('stray', ['classification_report.txt', 'train_labels.csv', 'subclass_notes.txt'])
def test_other_files_are_not_taken_for_a_list_of_classes(stray, tmp_path):
    write(tmp_path)
    (tmp_path / stray).write_text('precision 0.91\nrecall 0.8\nsome text\nfoo\n')
    (tmp_path / 'names.txt').write_text('background\ncat\ndog\nbird\n')
    assert masks.read(tmp_path).classes == ['background', 'cat', 'dog', 'bird']


@pytest.mark.parametrize(
    ('change', 'stray', 'text', 'words'),
    [
        (white, 7, None, ('0 and 255 and, on few pixels, 7', '255 foreground', '--fix')),
        (np.asarray, 4, 'background\ncat\ndog\nbird\n', ('values up to 4, counted from 0', '4 names', '--fix')),
    ],
    ids=['black and white', 'background first'],
)
def test_a_stray_value_changes_no_meaning(change, stray, text, words, tmp_path):
    def with_stray(drawn):
        values = change(drawn).copy()
        values[0, 0] = stray
        return values

    write(tmp_path, change=with_stray)
    if text:
        (tmp_path / 'classes.txt').write_text(text)
    with pytest.raises(UserError) as error:
        masks.read(tmp_path)
    assert all(word in str(error.value) for word in words)


# What JPEG, smooth edges and other channels leave


def smooth(drawn):
    return cv2.GaussianBlur(drawn, (5, 5), 1.2)


@pytest.mark.parametrize('text', [None, 'background\nlesion\n', '0 background\n255 lesion\n'])
@pytest.mark.parametrize(('suffix', 'change'), [('png', smooth), ('jpg', np.asarray)], ids=['smooth', 'JPEG'])
def test_values_between_are_the_nearest_class(suffix, change, text, tmp_path):
    truth = write(tmp_path / 'd', label_map=f'masks/{{}}.{suffix}', change=lambda drawn: change(white(drawn)))
    if text:
        (tmp_path / 'd/classes.txt').write_text(text)
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert found.classes == ['background', 'lesion' if text else 'foreground']
    for name, values in binary(truth).items():
        assert (maps[name] == values).mean() > 0.98
    assert any('form no area' in note and '% of the pixels' in note for note in found.notes)


def test_classes_close_to_each_other_stay_apart_beside_smooth_edges(tmp_path):
    change = np.array([0, 1, 2, 255], np.uint8).__getitem__
    truth = write(tmp_path / 'd', change=lambda drawn: smooth(change(drawn)))
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert found.classes == ['class_0', 'class_1', 'class_2']
    for name, values in truth.items():
        is_kept = smooth(change(values)) == change(values)
        np.testing.assert_array_equal(maps[name][is_kept], change(values)[is_kept])


def test_smooth_edges_of_colours(tmp_path):
    truth = write(tmp_path / 'd', change=lambda drawn: smooth(COLOURS[drawn]), values=(1, 2))
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert found.classes[0] == 'colour_0_0_0'
    assert len(found.classes) == 3
    for name, values in truth.items():
        assert ((maps[name] > 0) == (values > 0)).mean() > 0.95


def test_jpeg_of_numbers_is_refused(tmp_path):
    write(tmp_path, label_map='masks/{}.jpg')
    with pytest.raises(UserError, match=r'JPEG files with \d+ values.*Write label maps as PNG'):
        masks.read(tmp_path)


def test_thin_lines_and_rare_classes_are_kept(tmp_path):
    """Lanes of one pixel form no area, and a class of a few pixels is no noise."""

    def add_lines(drawn):
        drawn = drawn.copy()
        drawn[:, -4:] = (4, 5, 6, 7)
        drawn[0, 0] = 8
        return drawn

    write(tmp_path / 'd', change=add_lines)
    found, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    assert found.classes == [f'class_{i}' for i in range(9)]
    assert all(set(range(4, 9)) <= set(np.unique(values).tolist()) for values in maps.values())


def test_many_grey_levels_are_classes_where_they_form_areas(tmp_path):
    steps = np.kron(np.arange(0, 250, 10, dtype=np.uint8).reshape(5, 5), np.ones((9, 9), np.uint8))
    for i in range(2):
        save(tmp_path / f'images/{i}.png', np.zeros((45, 45, 3), np.uint8))
        save(tmp_path / f'masks/{i}.png', steps)
    assert len(masks.read(tmp_path).classes) == 25


@pytest.mark.parametrize(
    ('change', 'suffix'),
    [
        (lambda drawn: drawn[..., None].repeat(3, axis=2), 'png'),
        (lambda drawn: np.dstack([drawn, np.full_like(drawn, 255)]), 'png'),
        (lambda drawn: np.dstack([drawn, drawn, drawn, np.full_like(drawn, 255)]), 'png'),
        (lambda drawn: np.where(drawn == 3, -5, drawn.astype(np.int32)), 'tif'),
    ],
    ids=['RGB', 'LA', 'RGBA', 'negative'],
)
def test_what_is_trained_on_has_one_channel_of_classes(change, suffix, tmp_path):
    truth = write(tmp_path / 'd', label_map=f'masks/{{}}.{suffix}', change=change)
    _, maps = read_back(tmp_path / 'd', tmp_path / 'out')
    if suffix == 'tif':
        truth = {name: np.where(values == 3, 255, values) for name, values in truth.items()}
    assert_equal(maps, truth)
    assert all(values.dtype == np.uint8 for values in maps.values())


# The config


@pytest.mark.parametrize('base', ['seg/upernet_convnext_atto_shapes', 'seg/upernet_convnext_t_ade20k'])
def test_images_of_all_sizes_become_batches(base, tmp_path):
    from mmengine.registry import DATASETS, MODELS, init_default_scope

    for i, (width, height) in enumerate([(200, 140), (150, 700), (40, 40), (640, 360)]):
        save(tmp_path / f'd/images/{i}.jpg', np.full((height, width, 3), i, np.uint8))
        save(tmp_path / f'd/masks/{i}.png', (np.indices((height, width)).sum(0) // 30 % 3).astype(np.uint8))
    cfg = load_config(prepare_data(base, tmp_path / 'd', tmp_path / 'work/data'))
    init_default_scope('mmseg')
    dataset, preprocessor = (
        DATASETS.build(cfg.train_dataloader.dataset),
        MODELS.build(cfg.model.data_preprocessor),
    )
    samples = [dataset[i % len(dataset)] for i in range(8)]
    batch = dict(inputs=[each['inputs'] for each in samples], data_samples=[each['data_samples'] for each in samples])
    size = cfg.model.data_preprocessor.size
    assert preprocessor(batch, training=True)['inputs'].shape == (8, 3, *size)
    tested = next(step for step in cfg.val_dataloader.dataset.pipeline if step.type == 'Resize')
    assert tuple(tested.scale) == (4 * min(size), min(size))


def test_a_config_without_any_size_gets_one(tmp_path):
    write(tmp_path / 'd')
    base = tmp_path / 'base.py'
    base.write_text(
        "_base_ = 'convnext_dense::seg/upernet_convnext_atto_shapes.py'\n"
        "model = dict(data_preprocessor=dict(_delete_=True, type='SegDataPreProcessor'))\n"
    )
    cfg = load_config(prepare_data(base, tmp_path / 'd', tmp_path / 'data'))
    assert tuple(cfg.model.data_preprocessor['size']) == (512, 512)
    assert Path(cfg.train_dataloader.dataset.ann_file).is_file()
