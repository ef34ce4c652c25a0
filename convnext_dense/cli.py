"""The command line: one table of commands for ``convnext-dense NAME`` and for the scripts in ``tools/``.

A command parses its options and calls one function, which is imported only then. To add a command, add a row.
"""

import argparse
import contextlib
import multiprocessing
import os
import sys
from collections.abc import Iterator, Sequence
from pkgutil import resolve_name
from typing import Any, NamedTuple, NoReturn

from mmengine.config import DictAction

from convnext_dense import __version__
from convnext_dense.compat import silence, trust_checkpoints
from convnext_dense.compat.errors import RunStopped, UserError
from convnext_dense.train.launch import is_in_group, is_lost_connection, say_once, was_said

PROGRAM = 'convnext-dense'
TRACEBACK_VARIABLE = 'CONVNEXT_DENSE_TRACEBACK'


class Options(DictAction):
    """MMEngine's ``KEY=VALUE`` pairs; a word without ``=`` is an error."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        """Parse the pairs."""
        for word in values:
            if '=' not in word:
                parser.error(f'{option_string} takes KEY=VALUE pairs; got {word!r}')
        super().__call__(parser, namespace, values, option_string)


Option = tuple[tuple[str, ...], dict[str, Any]]  # the flags and the settings of an argument


def option(*flags: str, **settings) -> Option:
    """Return an argument of a command as argparse takes it; ``choices`` may be ``'module:table'``, read when needed."""
    return flags, settings


def switch(flag: str, text: str, **settings) -> Option:
    """Return an option without a value."""
    return option(flag, **{'action': 'store_true', 'help': text, **settings})


def names(text: str) -> list[str]:
    """Return what a text lists with commas, without the blanks around them.

    >>> names('cat, traffic light')
    ['cat', 'traffic light']
    """
    return [name.strip() for name in text.split(',')]


class Command(NamedTuple):
    """A row of the table of commands."""

    help: str  # one sentence, without its full stop
    function: str  # what the command calls with its options, as 'module:function'
    options: tuple[Option, ...] = ()
    shown: bool = False  # print what the function returns


CONFIG = option('config', help='config file, or the name of one, as det/cascade_convnext_t_coco')
OVERRIDES = option('--cfg-options', nargs='+', action=Options, metavar='KEY=VALUE', help='override the config')
TRUST = switch('--trust-checkpoint', 'read checkpoints that hold more than tensors and plain data; they can run code')
NO_CHECK = switch('--no-check', 'do not check data and config first', dest='check', action='store_false')
RUN = (
    NO_CHECK,
    option('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config name>)'),
    option('--launcher', choices=['none', 'pytorch', 'slurm'], default='none', help='job launcher'),
    option('--local_rank', '--local-rank', type=int, help=argparse.SUPPRESS),
)
DATA = (
    option('--format', dest='data_format', help='coco, voc, yolo, labelme or masks, where the data is not clear'),
    option('--images', metavar='DIR', help='folder of the images of label maps, where its name does not tell it'),
    option('--labels', metavar='DIR', help='folder of the label maps'),
    option('--classes', type=names, metavar='A,B,C', help='names of the classes, in their order'),
    option('--seed', type=int, default=0, help='of the draw of validation images (default: %(default)s)'),
)
SWITCHES = (  # of convnext_dense.train.switches
    switch('--ema', 'evaluate and save an average of the weights'),
    option('--early-stop', type=int, metavar='N', help='end where N evaluations bring nothing better'),
    switch('--save-best', 'keep the checkpoint of the best evaluation'),
    option('--size', type=int, metavar='PIXELS', help="scale images to this longest side; a segmentor's crops alike"),
    option('--batch', metavar='N|auto', help='images for each process and step; auto: as many as fit the GPU'),
    switch('--polygons', 'keep masks as polygons until the loss: data several times as fast'),
    switch('--fast-jpeg', 'decode large JPEG photos at about the size that is trained on'),
    option('--accumulate', type=int, metavar='N', help='gradients of N batches for each step'),
    option('--freeze', type=int, metavar='N', help='do not train the stem and the first N stages'),
    switch('--zero', 'several processes: each keeps a part of the moments'),
    switch('--fsdp', 'several processes: each keeps a part of parameters, gradients and moments'),
    switch('--balance', 'repeat images with rare classes'),
    option('--log', metavar='NAME', help='send metrics to tensorboard, wandb, mlflow or trackio as well'),
    switch('--profile', 'write a trace of the first steps'),
    option(
        '--timeout',
        type=int,
        metavar='SECONDS',
        help='end the run where data or another process do not come for so long (default: 600)',
    ),
)
SOURCE_HELP = 'checkpoint file, address, or convnext://, timm:// or hf:// name'
AGAINST = option('--against', metavar='REPORT', help='report.json of another test, or its folder, to compare with')
AMP = switch('--amp', 'mixed precision: fp16 on a GPU, bf16 on a CPU that has it')
CONFIG_OF_MODEL = option('--config', help='config of the model, where the checkpoint does not hold it')
FORCE = switch('--force', 'replace files that exist')

COMMANDS = {
    'train': Command(
        'Train a detector or a segmentor',
        'convnext_dense.train:train',
        (
            CONFIG, OVERRIDES, *RUN, TRUST,
            switch('--amp', 'mixed precision, where the config does not ask for it'),
            option('--resume', nargs='?', const='auto', metavar='CKPT',
                   help='continue from the latest checkpoint of the work dir, or from CKPT'),
            switch('--auto-scale-lr', 'scale the lr with the batch size'),
            *SWITCHES,
            option('--data', metavar='PATH', help="your own data in place of the config's: COCO, VOC, YOLO ..."),
            *DATA,
        ),
    ),
    'import-data': Command(
        'Read data of any known format and write the files to train on',
        'convnext_dense.data.importing:import_data',
        (
            option('source', metavar='SRC', help='file or folder'),
            option('out', metavar='OUT', help='folder to write to'),
            option('--task', choices=['det', 'seg'], help='objects or label maps (default: what the data is)'),
            *DATA,
        ),
        shown=True,
    ),
    'test': Command(
        'Evaluate a detector or a segmentor',
        'convnext_dense.train:test',
        (
            CONFIG, option('checkpoint', help='checkpoint file of the whole model'), OVERRIDES, *RUN, TRUST,
            option('--out', help='write predictions: a .pkl file for detectors, a folder for segmentors'),
            switch('--show', 'show the predictions in a window'),
            option('--show-dir', help='save pictures of the predictions in this folder, below that of the log'),
            option('--wait-time', type=float, default=2, help='seconds for which a window stays'),
            switch('--tta', 'test-time augmentation'), AMP,
            switch('--report', 'write a page with all figures'), AGAINST,
        ),
    ),
    'report': Command(
        'Evaluate a detector or a segmentor, and write a page with all figures and the worst images',
        'convnext_dense.report:report',
        (
            CONFIG, option('checkpoint', help='checkpoint file of the whole model'), OVERRIDES, *RUN, TRUST,
            switch('--tta', 'test-time augmentation'), AMP, AGAINST,
        ),
    ),
    'predict': Command(
        'Find objects or label pixels on images and videos',
        'convnext_dense.report.compare:predict',
        (
            option('model', metavar='MODEL', help='work dir of a run, checkpoint file or address, or exported model'),
            option('inputs', metavar='INPUT', nargs='+', help='images, videos, folders, patterns, or .txt lists'),
            option('--out', default='predictions', help='folder to write to (default: %(default)s)'),
            CONFIG_OF_MODEL, OVERRIDES,
            option('--save', nargs='+', metavar='KIND',
                   help='objects: pictures, coco, csv, yolo; label maps: pictures, maps, csv (default: the first two)'),
            option('--score', type=float, help='lowest score of an object (default: 0.3)'),
            option('--classes', type=names, metavar='A,B,C', help='the classes that are wanted'),
            option('--batch', type=int, default=1, help='images in one step (default: %(default)s)'),
            option('--tile', type=int, metavar='PIXELS', help='cut larger images into tiles of this side'),
            option('--overlap', type=float, default=0.25, help='part that tiles share; 0 cuts objects (default: 0.25)'),
            switch('--tta', 'test-time augmentation'), AMP,
            option('--workers', type=int, default=2, help='threads that read images (default: %(default)s)'),
            option('--device', help='cpu, cuda, cuda:1 (default: a GPU where there is one)'),
            option('--compare', metavar='ANN', help='COCO JSON, or folder of label maps: print the metrics'), TRUST,
        ),
    ),
    'export': Command(
        'Write a model as one graph for onnxruntime, OpenVINO or PyTorch, if it predicts the same there',
        'convnext_dense.export:export',
        (
            option('model', metavar='MODEL', help='work dir of a run, or checkpoint file or address'),
            option('--to', default='onnx', choices='convnext_dense.export.write:TARGETS', help='default: %(default)s'),
            option('--out', metavar='FILE', help='file to write (default: named after the config)'),
            option('--images', nargs='+', default=(), metavar='PATH', help='images to compare, besides drawn ones'),
            option('--tolerance', type=float, default=1, metavar='TIMES',
                   help='how many times its limit a difference may be (default: %(default)s)'),
            CONFIG_OF_MODEL, OVERRIDES, FORCE,
            TRUST,
        ),
        shown=True,
    ),
    'check-data': Command(
        'Check the data of a config, or data in any known format, and look for images that are in two splits',
        'convnext_dense.train.check:check_data',
        (
            option('source', metavar='CONFIG|PATH', help='config, or a file or folder of data'), OVERRIDES,
            option('--fix', dest='out', metavar='OUT', help='write sound copies of the annotations of data into OUT'),
            option('--json', dest='as_json', metavar='FILE', help='write the report as JSON too'),
            option('--html', dest='page', metavar='FILE', help='write it as one page, with pictures of what is wrong'),
            *DATA,
        ),
        shown=True,
    ),
    'browse-data': Command(
        'Draw augmented training samples of a config, and describe its data in numbers',
        'convnext_dense.train.browse:browse',
        (
            CONFIG, OVERRIDES,
            option('--out', help='folder to write to (default: work_dirs/<config name>/data)'),
            option('--samples', type=int, default=16, help='how many are drawn (default: %(default)s)'),
            option('--seed', type=int, default=0, help='of their choice and augmentation (default: %(default)s)'),
        ),
        shown=True,
    ),
    'show-lr': Command(
        'Print the learning rate and weight decay of every parameter group of a config, without data or training',
        'convnext_dense.train.run:describe_rates',
        (CONFIG, OVERRIDES),
        shown=True,
    ),
    'swap': Command(
        'Write a config that inherits another one of MMDetection or MMSegmentation, with a ConvNeXt for its backbone',
        'convnext_dense.swap:write_swap',
        (
            option('config', help='a config file, or the name of one, as mmdet::FOLDER/NAME.py'),
            option('--arch', default='t',
                   help='size: t, s, b, l, xl, h, or atto, femto, pico, nano; or ladder:STEP (default: t)'),
            switch('--v2', 'ConvNeXt V2'),
            switch('--in22k', 'start from ImageNet-22k weights'),
            option('--weights', help="initial weights instead of the published ones; '' for none"),
            option('-o', '--out', help='file to write (default: print the config)'),
            option('--no-proof', dest='proof', action='store_false', help='write it without trying it'),
        ),
    ),
    'convert': Command(
        'Write a checkpoint under the names of another library',
        'convnext_dense.weights.convert:convert',
        (
            option('source', metavar='IN', help=SOURCE_HELP),
            option('out', metavar='OUT', help='file to write: .safetensors or .pth'),
            option('--to', required=True, choices='convnext_dense.weights.convert:TARGETS', help='whose names'),
            switch('--backbone-only', 'leave out everything but the backbone'),
            option('--prefix', help='the backbone alone, and which one of several: what stands before its keys'),
            FORCE, TRUST,
        ),
        shown=True,
    ),
    'inspect': Command(
        'Say what a checkpoint file is, without a config',
        'convnext_dense.weights.inspect:describe',
        (
            option('source', metavar='FILE', help=SOURCE_HELP),
            switch('--keys', 'list the names and shapes of all tensors too'),
            switch('--json', 'print everything as JSON', dest='as_json'),
            TRUST,
        ),
        shown=True,
    ),
    'publish': Command(
        'Write trained weights for others, with their config',
        'convnext_dense.weights.publish:publish',
        (
            option('checkpoint', metavar='CHECKPOINT', help='checkpoint file of a training'),
            option('out', metavar='OUT', help='folder (ends in /), or folder and name; a hash is added to the name'),
            option('--config', help='config file, where the checkpoint does not hold the config'),
            option('--format', dest='file_format', choices='convnext_dense.weights.publish:FORMATS',
                   default='safetensors', help='default: %(default)s'),
            switch('--half', 'store matrices and kernels in float16'),
            option('--metrics', nargs='+', action=Options, metavar='NAME=NUMBER', help="in place of the log's"),
            FORCE, TRUST,
        ),
        shown=True,
    ),
    'stats': Command(
        'Print parameters, GFLOPs and activations of configs beside the published figures',
        'convnext_dense.cli:show_stats',
        (
            option('configs', nargs='*', metavar='CONFIG', help="config files (default: all of this package's)"),
            option('--size', nargs=2, type=int, metavar=('W', 'H'),
                   help='image in pixels (default: that of the published count, or of the test)'),
            switch('--measure', 'run one image for time and peak memory, on CUDA or CPU'),
            switch('--train', 'measure a training step too, with as many images as a GPU gets'),
            switch('--amp', '--measure and --train in mixed precision'),
            option('--out', metavar='FILE', help='write the table to a .md, .csv or .json file too'),
        ),
    ),
    'ladder': Command(
        'Count, measure and train the steps from ResNet-50 to ConvNeXt, as a table and a picture',
        'convnext_dense.train.climb:climb',
        (
            option('--out', default='work_dirs/ladder', help='folder to write to (default: %(default)s)'),
            option('--size', nargs=2, type=int, metavar=('W', 'H'), default=(640, 416),
                   help='image of the measured Mask R-CNN in pixels (default: 640 416)'),
            option('--rounds', type=int, default=3, help='measure so often, in turns; 0: not (default: %(default)s)'),
            switch('--train', 'train UperNet with each step on the drawn data too; hours on a CPU'),
            option('--seeds', type=int, default=3, help='trainings of each step (default: %(default)s)'),
            option('--jobs', type=int, default=1, help='trainings at a time (default: %(default)s)'),
        ),
        shown=True,
    ),
    'doctor': Command('Report versions, ops, patches and what does not work', 'convnext_dense.compat.doctor:main'),
}  # fmt: skip


def main(name: str | None = None, arguments: Sequence[str] | None = None) -> None:
    """Run the command ``name``, that of a script in ``tools/``; by default the first of ``arguments`` names it.

    ``arguments`` are the words behind the program's name, by default those of ``sys.argv``.
    """
    silence()
    words = list(sys.argv[1:] if arguments is None else arguments)
    if name is None:
        name = command_parser().parse_args(words[:1]).command
        parser, words = option_parser(name, f'{PROGRAM} {name}'), words[1:]
    else:
        parser = option_parser(name)
    options = vars(parser.parse_args(words))
    if (local_rank := options.pop('local_rank', None)) is not None:  # PyTorch's old launcher sets no variable
        os.environ.setdefault('LOCAL_RANK', str(local_rank))
    trust = trust_checkpoints() if options.pop('trust_checkpoint', False) else contextlib.nullcontext()
    with user_errors(), trust:
        result = resolve_name(COMMANDS[name].function)(**options)
        if COMMANDS[name].shown:
            print(result)
    if type(result) is int:
        sys.exit(result)


class QuietParser(argparse.ArgumentParser):
    """Argparse's parser; one of several processes prints a mistake in the options."""

    def error(self, message: str) -> NoReturn:
        """Print usage and message, and exit with code 2."""
        say_once(f'{self.format_usage()}{self.prog}: error: {message}')
        sys.exit(2)


def command_parser() -> argparse.ArgumentParser:
    """Return the parser of the first word."""
    rows = '\n'.join(f'  {name:<12}{command.help}.' for name, command in COMMANDS.items())
    parser = QuietParser(
        prog=PROGRAM,
        usage=f'{PROGRAM} COMMAND ...',
        description=f'Commands; {PROGRAM} COMMAND --help lists the options of one:\n\n{rows}',
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument('--version', action='version', version=f'{PROGRAM} {__version__}')
    parser.add_argument('command', choices=COMMANDS, metavar='COMMAND', help='one of the above')
    return parser


def option_parser(name: str, program: str | None = None) -> argparse.ArgumentParser:
    """Return the parser of a command's options."""
    parser = QuietParser(prog=program, description=f'{COMMANDS[name].help}.')
    for flags, settings in COMMANDS[name].options:
        choices = settings.get('choices')
        given = dict(settings, choices=tuple(resolve_name(choices))) if isinstance(choices, str) else settings
        parser.add_argument(*flags, **given)
    return parser


def show_stats(**options) -> None:
    """Print the table of ``convnext_dense.train.stats``, then what could not be counted, as an error."""
    table, failures = resolve_name('convnext_dense.train.stats:describe_models')(**options)
    print(table)
    if failures:
        raise UserError('\n'.join(failures))


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn what ends a command into one message on standard error and an exit code.

    Exit codes: 1 for an error with a traceback, 2 for a mistake of the user, 3 for a training whose numbers are not
    finite, 75 for a training that SIGTERM or SIGUSR1 has ended, 130 for Ctrl-C. Of several processes on a machine, the
    one that finds the mistake first prints it.
    """
    try:
        yield
    except UserError as error:
        if os.environ.get(TRACEBACK_VARIABLE):
            raise
        hint = f'\n(set {TRACEBACK_VARIABLE}=1 for the traceback)' if error.__cause__ is not None else ''
        say_once(f'error: {error}{hint}')
        leave(error.code)
    except RunStopped as stopped:
        say_once(str(stopped))
        leave(stopped.code)
    except RuntimeError as error:
        if is_lost_connection(error) and was_said():
            leave(2)  # the process that failed has told why
        raise
    except KeyboardInterrupt:
        say_once('interrupted; a prediction continues with the same command')
        leave(130)


def leave(code: int) -> NoReturn:
    """Exit; out of a process group at once, because its destructors wait for the others or abort this process.

    Workers of a data loader are killed: Python would wait for one that hangs.
    """
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
    if is_in_group():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == '__main__':
    main()
