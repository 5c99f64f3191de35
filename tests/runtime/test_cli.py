import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fakes
from mscope.core.console import run_app
from mscope.runtime.cli import app

ROOT = Path(__file__).parents[2]
PATHS = [str(ROOT / root) for root in ("core", "plugins", "model", "runtime", "export")]
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs the command in this process: (exit status, stdout, stderr), nothing lost at the file descriptors."""

    def call(*arguments: object) -> tuple[int, str, str]:
        status = run_app(app, [str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return status, out, err

    return call


@pytest.fixture
def pictures(tmp_path: Path, network: fakes.FakeNetwork) -> Path:
    """Six pictures, of which some exit at eta 0.6 and some do not."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number, image in enumerate(fakes.random_images(network.config, 6)):
        pixels = np.clip(image.transpose(1, 2, 0) * 127 + 128, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


def lines(out: str) -> list[dict[str, object]]:
    return [json.loads(line) for line in out.splitlines()]


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "mscope.runtime.cli", *(str(argument) for argument in arguments)]


def environment() -> dict[str, str]:
    return os.environ | {"PYTHONPATH": os.pathsep.join(PATHS), "PYTHONUNBUFFERED": ""}


def test_json_is_one_object_a_picture(run: Run, bundle: Path, pictures: Path) -> None:
    status, out, err = run(pictures, "--bundle", bundle, "--eta", "0.6", "--json")
    assert (status, err) == (0, "")
    found = lines(out)
    assert [line["source"] for line in found] == [str(pictures / f"{n}.png") for n in range(6)]
    assert {line["stage"] for line in found} == {"coarse", "fine"}
    assert all(line["eta"] == 0.6 and line["untrained"] is True for line in found)


@pytest.mark.parametrize("batch", [2, 4, 100])
def test_batches_do_not_change_the_answers(run: Run, bundle: Path, pictures: Path, batch: int) -> None:
    def essence(out: str) -> list[object]:
        return [(x["source"], x["stage"], x["selected"], pytest.approx(x["confidence"], abs=1e-5)) for x in lines(out)]

    alone = run(pictures, "--bundle", bundle, "--json")[1]
    together = run(pictures, "--bundle", bundle, "--json", "--batch", batch)[1]
    assert essence(alone) == essence(together)


def test_table_for_people(run: Run, bundle: Path, pictures: Path) -> None:
    status, out, err = run(pictures, "--bundle", bundle, "--eta", "0.6")
    assert (status, err) == (0, "")
    for text in ("0.png", "5.png", "label ", "coarse", "fine", "6 pictures", "left early", "plain ViM", "untrained"):
        assert text in out
    assert "\x1b" not in out, "colours in a pipe"
    status, out, err = run(pictures / "0.png", "--bundle", bundle, "--topk", 4)
    assert out.count("label ") == 4


def test_a_broken_picture_does_not_stop_the_others(run: Run, bundle: Path, pictures: Path) -> None:
    (pictures / "2.png").write_text("no picture")
    (pictures / "4.png").write_bytes((pictures / "4.png").read_bytes()[:100])
    status, out, err = run(pictures, "--bundle", bundle, "--json", "--batch", 3)
    assert status == 1
    assert [Path(str(line["source"])).name for line in lines(out)] == ["0.png", "1.png", "3.png", "5.png"]
    assert [line.split(": ")[0] for line in err.splitlines()] == ["error", "error"]
    assert "2.png" in err.splitlines()[0]
    assert "4.png" in err.splitlines()[1]


def test_a_name_that_a_terminal_would_obey(run: Run, bundle: Path, pictures: Path, tmp_path: Path) -> None:
    odd, broken = pictures / "red\x1b[31m\n.png", pictures / "bell\x07.png"
    (pictures / "0.png").rename(odd)
    broken.write_text("no picture")
    for source, status in ((pictures, 1), (odd, 0), (broken, 2)):
        done, out, err = run(source, "--bundle", bundle, "--save-vis", tmp_path / "seen")
        assert done == status
        assert (r"red\x1b[31m\n.png" in out) == (source != broken)
        assert (r"bell\x07.png: " in err) == (source != odd)
        assert not {"\x1b", "\x07"} & {*out, *err}
    assert lines(run(odd, "--bundle", bundle, "--json")[1])[0]["source"] == str(odd)


def test_nothing_usable_is_bad_input(run: Run, bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cat.jpg").write_text("text")
    np.save(tmp_path / "bad.npy", np.full((3, 64, 48), np.nan, np.float32))
    np.save(tmp_path / "wrong.npy", np.zeros((3, 64, 48), np.float64))
    (tmp_path / "empty").mkdir()
    for name in ("cat.jpg", "bad.npy", "wrong.npy", "empty", "none.png", "*.gif", "film.mp4"):
        status, out, err = run(tmp_path / name, "--bundle", bundle)
        assert (status, out) == (2, ""), name
        assert err.startswith("error: "), name
        assert err.count("\n") == 1, name
        assert name in err


def test_nan_in_one_row_of_a_tensor(run: Run, bundle: Path, tmp_path: Path, network: fakes.FakeNetwork) -> None:
    images = fakes.random_images(network.config, 4)
    images[1, 0, 0, 0] = np.nan
    np.save(tmp_path / "x.npy", images)
    status, out, err = run(tmp_path / "x.npy", "--bundle", bundle, "--json", "--batch", 4)
    assert status == 1
    assert [line["source"] for line in lines(out)] == [f"{tmp_path}/x.npy[{row}]" for row in (0, 2, 3)]
    assert "x.npy[1]: 1 value(s) are NaN" in err


def test_save_outputs(run: Run, bundle: Path, tmp_path: Path, network: fakes.FakeNetwork) -> None:
    images = fakes.random_images(network.config, 7)
    np.save(tmp_path / "x.npy", images)
    target = tmp_path / "new" / "out.npz"
    status, out, _ = run(
        tmp_path / "x.npy", "--bundle", bundle, "--json", "--batch", 3, "--eta", 0.6, "--save-outputs", target
    )
    assert status == 0
    with np.load(target, allow_pickle=False) as saved:
        arrays = dict(saved)
    expected = network.coarse(images)
    np.testing.assert_allclose(arrays["coarse_logits"], expected["logits"], rtol=1e-5, atol=1e-4)
    np.testing.assert_allclose(arrays["importance"], expected["importance"], rtol=1e-5, atol=1e-5)
    assert {name: str(array.dtype) for name, array in arrays.items() if name not in ("sources", "untrained")} == {
        "logits": "float32", "coarse_logits": "float32", "importance": "float32", "selected": "int64",
    }  # fmt: skip
    found = lines(out)
    assert arrays["sources"].tolist() == [line["source"] for line in found]
    assert bool(arrays["untrained"])
    for row, line in enumerate(found):
        assert arrays["selected"][row].tolist() == (line["selected"] or [-1] * 6)
        same = np.array_equal(arrays["logits"][row], arrays["coarse_logits"][row])
        assert same == (line["stage"] == "coarse")
        assert arrays["logits"][row].argmax() == line["topk"][0]["index"]  # type: ignore[index]
    assert names(target.parent) == ["out.npz"], "a temporary file is left"


def test_save_outputs_of_plain_vim(run: Run, vim_bundle: Path, tmp_path: Path, pictures: Path) -> None:
    assert run(pictures, "--bundle", vim_bundle, "--save-outputs", tmp_path / "o.npz")[0] == 0
    with np.load(tmp_path / "o.npz") as saved:
        assert sorted(saved) == ["logits", "sources", "untrained"]


def test_a_folder_that_cannot_be_made_is_named(run: Run, bundle: Path, tmp_path: Path, pictures: Path) -> None:
    target = tmp_path / ("n" * 300)
    for option, path in (("--save-vis", target), ("--save-outputs", target / "o.npz")):
        status, out, err = run(pictures, "--bundle", bundle, option, path)
        assert (status, out) == (2, "")
        assert f"{target}: cannot make this folder: File name too long" in err
    status, out, err = run(pictures, "--bundle", bundle, "--save-outputs", f"{target}.npz")
    assert (status, out) == (2, "")
    assert f"{target}.npz: cannot write this file: File name too long" in err


def test_save_vis(run: Run, bundle: Path, vim_bundle: Path, tmp_path: Path, pictures: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    Image.open(pictures / "0.png").save(other / "0.jpg")
    np.save(other / "x.npy", np.zeros((2, 3, 64, 48), np.float32))
    target = tmp_path / "vis"
    status, _, err = run(pictures / "0.png", pictures / "1.png", other, "--bundle", bundle, "--save-vis", target)
    assert (status, err) == (0, "")
    assert names(target) == [
        "0-2.overlay.png", "0.overlay.png", "1.overlay.png", "x-0.overlay.png", "x-1.overlay.png",
    ]  # fmt: skip
    with Image.open(target / "0.overlay.png") as picture:
        assert picture.width > 700
    assert run(pictures / "0.png", "--bundle", vim_bundle, "--save-vis", target)[0] == 0
    # As long as a name may be, 255 bytes.
    long = (pictures / "1.png").rename(pictures / f"{'写' * 83}12.png")
    assert run(long, "--bundle", bundle, "--save-vis", tmp_path / "long")[0] == 0
    assert names(tmp_path / "long") == [f"{'写' * 66}.overlay.png"]


def test_bad_usage(run: Run, bundle: Path, vim_bundle: Path, pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    picture, with_bundle = pictures / "0.png", ("--bundle", bundle)
    for arguments, message in [
        ((), "SOURCE"),
        ((picture, "--no-such-option"), "--no-such-option"),
        ((picture, *with_bundle, "--eta", "1.5"), "eta is a confidence between 0 and 1"),
        ((picture, *with_bundle, "--eta", "nan"), "eta is a confidence between 0 and 1"),
        ((picture, *with_bundle, "--eta", "much"), "--eta"),
        ((picture, *with_bundle, "--batch", "0"), "--batch"),
        ((picture, *with_bundle, "--topk", "0"), "--topk"),
        ((picture, *with_bundle, "--threads", "0"), "threads"),
        ((picture, *with_bundle, "--kernel", "fast"), "--kernel"),
        ((picture, *with_bundle, "--backend", "tpu"), "unknown backend 'tpu'"),
        ((picture, "--bundle", vim_bundle, "--eta", "0.5"), "plain ViM"),
        ((picture, "--bundle", tmp_path / "none"), "no bundle at"),
        ((picture, "--bundle", pictures), "is not a bundle"),
        ((picture, *with_bundle, "--save-outputs", pictures), "is a folder"),
        ((picture, *with_bundle, "--save-outputs", tmp_path / "file" / "x.npz"), "in the way"),
        ((picture, *with_bundle, "--save-vis", tmp_path / "file"), "in the way"),
    ]:
        status, out, err = run(*arguments)
        assert (status, out) == (2, ""), arguments
        assert message in err, arguments
        assert err.startswith("error: "), arguments
        assert err.count("\n") == 1, arguments


def test_no_bundle_yet(run: Run, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MSCOPE_HOME", str(tmp_path / "home"))
    status, _, err = run(pictures)
    assert status == 2
    assert err.startswith("error: no bundle yet: build one with 'mscope-export build")


def test_a_full_disk_leaves_nothing(
    run: Run, bundle: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    target = tmp_path / "out"
    monkeypatch.setattr(np, "savez", full)
    status, _, err = run(pictures, "--bundle", bundle, "--save-outputs", target / "x.npz")
    assert (status, err.count("\n")) == (1, 1)
    assert "No space left on device" in err
    assert names(target) == []


def test_debug_shows_the_traceback(run: Run, bundle: Path, pictures: Path) -> None:
    _, _, err = run(pictures, "--bundle", bundle, "--eta", "7", "--debug")
    assert "Traceback" in err
    assert err.splitlines()[-1].startswith("error: ")


def test_help_has_an_example() -> None:
    done = subprocess.run(command("--help"), capture_output=True, text=True, check=True, env=environment())
    assert "mscope-run photo.jpg" in done.stdout
    assert "--save-outputs" in done.stdout


def test_help_loads_nothing_heavy() -> None:
    """So it is quick: 0.15 s."""
    code = (
        "import sys; from mscope.core.console import run_app; from mscope.runtime.cli import app; "
        "run_app(app, ['--help']); bad = {'numpy', 'PIL', 'onnxruntime', 'torch', 'onnx'} & set(sys.modules); "
        "sys.exit(str(bad) if bad else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert done.returncode == 0, done.stderr


def test_a_whole_run_imports_neither_torch_nor_onnx(bundle: Path, pictures: Path) -> None:
    code = (
        "import sys; from mscope.core.console import run_app; from mscope.runtime.cli import app; "
        f"status = run_app(app, [{str(pictures)!r}, '--bundle', {str(bundle)!r}, '--json']); "
        "bad = {'torch', 'onnx', 'matplotlib', 'sklearn'} & set(sys.modules); sys.exit(str(bad) if bad else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert len(lines(done.stdout)) == 6


def test_a_reader_that_goes_away_ends_it_quietly(bundle: Path, tmp_path: Path, network: fakes.FakeNetwork) -> None:
    np.save(tmp_path / "x.npy", fakes.random_images(network.config, 500))
    with subprocess.Popen(
        command(tmp_path / "x.npy", "--bundle", bundle, "--json"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(),
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline().startswith(b"{")
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_ctrl_c_is_one_line_and_130(bundle: Path, tmp_path: Path, network: fakes.FakeNetwork) -> None:
    np.save(tmp_path / "x.npy", fakes.random_images(network.config, 3000))
    target = tmp_path / "out"
    with subprocess.Popen(
        command(tmp_path / "x.npy", "--bundle", bundle, "--json", "--save-outputs", target / "x.npz"),
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment(), text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert (process.returncode, err) == (130, "error: interrupted\n")
    assert names(target) == []


def test_a_progress_bar_on_a_terminal_leaves_stdout_alone(bundle: Path, pictures: Path) -> None:
    (pictures / "3.png").write_text("no picture")
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command(pictures, "--bundle", bundle, "--json"), stdout=subprocess.PIPE, stderr=theirs, env=environment()
    ) as process:
        os.close(theirs)
        shown = b""
        while True:
            try:
                block = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not block:
                break
            shown += block
        out, _ = process.communicate(timeout=60)
    os.close(ours)
    assert process.returncode == 1
    assert len(lines(out.decode())) == 5
    assert b"6/6" in shown
    assert b"error: " in shown
