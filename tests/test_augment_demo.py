"""``just augment-demo``: every operation that there is, heard and seen."""

import numpy as np
from conftest import command, one_error_line

from ser import audio
from ser.augment_demo import augment_demo
from ser.config import BINDABLE

EVERY = {name for module, names in BINDABLE.items() if module.startswith("augment_") for name in names}


def test_every_operation_is_there_and_each_changes_the_sound(home):
    picture, before, *after = augment_demo()
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert {path.stem for path in after} == (EVERY - {"Mixup", "SpecAugment"}) | {"NoiseColoured"}
    original = audio.read(before)
    for path in after:
        sound = audio.read(path)
        assert sound.shape == original.shape
        assert np.abs(sound - original).max() > 1e-3, path.stem


def test_a_recording_of_ones_own_and_one_that_cannot_be_read(home, tmp_path, run_here):
    audio.write(tmp_path / "mine.wav", np.sin(np.arange(9000) / 9).astype(np.float32) / 2)
    done = command("augment_demo.py", tmp_path / "mine.wav", "--seed", 3)
    assert done.returncode == 0, done.stderr
    assert "operations.png" in done.stdout
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    assert "broken.wav" in one_error_line(run_here("augment_demo.py", tmp_path / "broken.wav"))
    assert "no such" in one_error_line(run_here("augment_demo.py", tmp_path / "absent.wav"))
