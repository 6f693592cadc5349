"""The configuration: every field's bounds, and messages that name file, line and field."""

import os
from pathlib import Path

import msgspec
import pytest

from models.errors import ConfigError
from onboard import config as config_file
from onboard.config import Config, load

# section, key, values at the bounds that are good, values just outside that are refused
BOUNDS = [
    ("", "state", ['""', '"/x"'], ["3"]),
    ("", "seed", ["0", "2147483647"], ["-1", "2147483648", "1.0", '"a"', "true"]),
    ("camera", "source", ['"sim://"'], ["3"]),
    ("camera", "rows", ["1", "32"], ["0", "33", "2.0", "true"]),
    ("camera", "fov_deg", ["1", "73.0", "170"], ["0.5", "171", "true"]),
    ("camera", "cols", ["1", "32"], ["0", "33", "-1"]),
    ("model", "artifact", ['""'], ["false"]),
    ("model", "hash", ['""', '"' + 64 * "a" + '"'], ['"' + 63 * "a" + '"', '"' + 64 * "A" + '"', "0"]),
    ("model", "threads", ["1", "64"], ["0", "65"]),
    (
        "model",
        "classes",
        ['["a", "b"]', str([f"c{i}" for i in range(32)]), '["' + "x" * 40 + '", "b"]'],
        ['["a"]', "[]", '["a", ""]', str([f"c{i}" for i in range(33)]), '["' + "x" * 41 + '", "b"]', '"ab"', "[1, 2]"],
    ),
    ("learn", "enabled", ["true", "false"], ["0", '"no"']),
    ("learn", "ridge", ["0.001", "1000", "1000.0"], ["0", "0.0", "-1.0", "1000.1", "nan", "inf"]),
    ("learn", "propagate", ["0", "1", "0.5"], ["-0.01", "1.01", "nan"]),
    ("learn", "reach_frames", ["0", "64"], ["-1", "65"]),
    ("learn", "memory", ["16", "768"], ["15", "769"]),
    ("learn", "judges", ["0", "256"], ["-1", "257"]),
    ("learn", "pseudo", ["0", "0.6", "10"], ["-0.1", "10.1", "nan"]),
    ("learn", "cpu_share", ["0.01", "1"], ["0", "1.1"]),
    ("ask", "share", ["0.0", "1"], ["-0.1", "1.1", '"1%"']),
    ("ask", "bytes_per_s", ["0", "0.5", "1e9"], ["-1", "1.1e9", "nan"]),
    ("ask", "crop_px", ["32", "512"], ["31", "513"]),
    ("ask", "jpeg_quality", ["10", "95"], ["9", "96"]),
    ("record", "folder", ['""'], ["[]"]),
    ("record", "images", ['"jpeg"', '"exact"'], ['"png"', "1"]),
    ("record", "keep_mb", ["0", "100000000"], ["-1", "100000001"]),
    ("record", "max_mb", ["1", "1000000"], ["0", "1000001"]),
    ("record", "min_free_mb", ["0", "1000000"], ["-1", "1000001"]),
    ("governor", "off_c", ["30", "80.0", "110"], ["29", "111", "nan"]),
    ("governor", "hysteresis_c", ["0.5", "40"], ["0", "41"]),
    ("governor", "min_memory_mb", ["0", "1000000"], ["-1", "1.5"]),
    ("governor", "min_disk_mb", ["0", "1000000"], ["-1", "1.5"]),
    ("governor", "min_battery_percent", ["0", "100"], ["-1", "101"]),
    ("governor", "sensors", ['"/"'], ["1"]),
    ("link", "keys", ['""'], ["1979-05-27"]),
    ("page", "address", ['""', '"127.0.0.1:8081"', '"[::]:80"'], ['"8081"', '"localhost:"', '"a:123456"', "8081"]),
]


def write(folder: Path, text: str | bytes) -> Path:
    path = folder / "onboard.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def refused(folder: Path, text: str | bytes) -> str:
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        load(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value).removeprefix(str(path))


def test_every_field_is_listed_here():
    fields = []
    for field in msgspec.structs.fields(Config):
        if isinstance(field.default, msgspec.Struct):
            fields += [(field.name, inner.name) for inner in msgspec.structs.fields(field.default)]
        else:
            fields.append(("", field.name))
    assert sorted(fields) == sorted((section, key) for section, key, _, _ in BOUNDS)


@pytest.mark.parametrize(("section", "key", "good", "bad"), BOUNDS, ids=lambda x: x if isinstance(x, str) else "")
def test_bounds(tmp_path, section, key, good, bad):
    header = f"# a comment\n[{section}]\n" if section else "\n\n"
    for value in good:
        config = load(write(tmp_path, f"{header}{key} = {value}\n"))
        part = getattr(config, section) if section else config
        default = getattr(Config(), section) if section else Config()
        changed = {f for f in type(part).__struct_fields__ if getattr(part, f) != getattr(default, f)}
        assert changed <= {key}
    for value in bad:
        message = refused(tmp_path, f"{header}{key} = {value}\n")
        assert message.startswith(", line 3: "), message
        assert f"`$.{section + '.' if section else ''}{key}" in message


def test_values_arrive(tmp_path):
    text = '\ufeffseed = 7\n[camera]\nrows = 3\n[model]\nclasses = ["a", "b"]\n[learn]\nridge = 2\n'
    config = load(write(tmp_path, text.replace("\n", "\r\n")))
    assert (config.seed, config.camera.rows, config.model.classes, config.learn.ridge) == (7, 3, ("a", "b"), 2.0)
    assert config.camera.cols == Config().camera.cols


def test_an_empty_file_is_the_default(tmp_path):
    assert load(write(tmp_path, "")) == Config()


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        ("[camera]\nrows = 1\n\nrow = 2\n", 4, "`row`"),
        ("seed = 1\nspeed = 2\n", 2, "`speed`"),
        ("seed = 1\n[camra]\nrows = 1\n", 2, "`camra`"),
        ("[camera]\nrows = 2\n[ask]\nrows = 2\n", 4, "`rows`"),
        ("[camera]\n'row' = 2\n", 2, "`row`"),
        ("camera.rows = 1\ncamera.row = 2\n", 2, "`row`"),
        ("seed = 1\ncamera = {rows = 1, row = 2}\n", 2, "`row`"),
        ("seed = 1\n[[camera]]\nrows = 1\n", 2, "array"),
        ("seed = 1\ncamera = 3\n", 2, "`int`"),
        ('[ask]\nshare = 0.5 # not\n  crop_px="160"\n', 3, "`str`"),
        ('[model]\nclasses = [\n "a",\n 5]\n', 2, "`int`"),
        ('[model]\nthreads = 2\nclasses = ["b", "a", "b"]\n', 3, "twice"),
    ],
)
def test_the_message_names_the_line(tmp_path, text, line, word):
    message = refused(tmp_path, text)
    assert message.startswith(f", line {line}: "), message
    assert word in message


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("[camera\nrows = 1\n", "line 1"),
        ("seed = \n", "line 1"),
        ("seed = 1\nseed = 2\n", "line 2"),
        ("x = " + "[" * 20_000 + "]" * 20_000, "not valid TOML"),
        ("x = " + "1" * 20_000, "not valid TOML"),
        (b"seed = 1\n# \xff\n", "not a UTF-8 text file (byte 11)"),
        (b"\x1f\x8b\x08\x00", "not a UTF-8 text file"),
    ],
)
def test_not_toml(tmp_path, text, word):
    assert word in refused(tmp_path, text)


def test_no_file(tmp_path):
    for path in (tmp_path / "no.toml", tmp_path, tmp_path / "no" / "no.toml"):
        with pytest.raises(ConfigError, match=f"^{path}: cannot be read: .*deploy/onboard.toml"):
            load(path)


@pytest.mark.skipif(os.getuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read(tmp_path):
    path = write(tmp_path, "")
    path.chmod(0)
    with pytest.raises(ConfigError, match="Permission denied"):
        load(path)


def test_the_shipped_example_is_the_default():
    example = Path(config_file.__file__).parent.parent / "deploy" / "onboard.toml"
    assert load(example) == Config()
