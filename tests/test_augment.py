"""Augmentation: exact, reproducible clip by clip, and never outside a clip."""

import math

import pytest
import torch

from ser.augment import Augmentation, ClipRandom
from ser.augment_features import Mixup, SoundMixup, SpecAugment
from ser.augment_sound import Clipping, Gain, Pitch, Polarity, Shift, Speed
from ser.augment_surroundings import BackgroundNoise, Band, LowPass, Noise, RecordedRooms, Reverb
from ser.errors import UserError
from ser.layers import clip_mask

CLIPS = [f"clip{number}" for number in range(5)]
SAMPLES = torch.tensor([4000, 2500, 1200, 3999, 800])
FRAMES = torch.tensor([120, 60, 7, 119, 33])


def batch_of(lengths, *shape):
    """Return a random batch [B, T, *shape], zero after each clip's end."""
    x = torch.randn(len(lengths), int(max(lengths)), *shape, generator=torch.Generator().manual_seed(1))
    return x * clip_mask(lengths, x.shape[1]).reshape(*x.shape[:2], *[1] * len(shape))


SOUND = batch_of(SAMPLES) * torch.tensor([0.3, 0.01, 0.1, 0.2, 0.05])[:, None]
FEATURES = batch_of(FRAMES, 40) + 3 * clip_mask(FRAMES, 120)[..., None]
CLIPWISE = {
    "noise": (Noise(probability=0.8), "sound", SOUND, SAMPLES),
    "gain": (Gain(probability=0.8), "sound", SOUND, SAMPLES),
    "speed": (Speed(probability=0.8), "sound", SOUND, SAMPLES),
    "coloured noise": (Noise(tilt_low=0.5, tilt_high=2.0, probability=0.8), "sound", SOUND, SAMPLES),
    "polarity": (Polarity(probability=0.8), "sound", SOUND, SAMPLES),
    "shift": (Shift(0.3, probability=0.8), "sound", SOUND, SAMPLES),
    "reverb": (Reverb(probability=0.8), "sound", SOUND, SAMPLES),
    "band": (Band(probability=0.8), "sound", SOUND, SAMPLES),
    "lowpass": (LowPass(probability=0.8), "sound", SOUND, SAMPLES),
    "clipping": (Clipping(probability=0.8), "sound", SOUND, SAMPLES),
    "specaugment": (SpecAugment(probability=0.8), "features", FEATURES, FRAMES),
}
each_clipwise = pytest.mark.parametrize(("operation", "kind", "x", "lengths"), CLIPWISE.values(), ids=CLIPWISE)


def same(x):
    """Return the lengths of a batch without padding."""
    return torch.full((len(x),), x.shape[1])


def random(seed=1, epoch=0, operation=0, clips=CLIPS):
    return ClipRandom(seed, epoch, operation, clips)


# Random numbers


def test_random_numbers_depend_on_seed_epoch_operation_and_clip():
    base = random(1, 2, 3).uniform().tolist()
    assert random(1, 2, 3).uniform().tolist() == base
    assert len(set(base)) == len(CLIPS)
    for other in (random(2, 2, 3), random(1, 3, 3), random(1, 2, 4), random(1, 2, 3, [f"{clip}x" for clip in CLIPS])):
        assert not set(other.uniform().tolist()) & set(base)


def test_random_numbers_of_a_clip_do_not_depend_on_its_neighbours():
    together, apart = random(), random(clips=CLIPS[::-1])
    for draw in (lambda r: r.uniform(2, 3), lambda r: r.normal(7), lambda r: r.beta(0.4)):
        assert torch.equal(draw(together), draw(apart).flip(0))


def test_random_numbers_have_their_distributions():
    clips = [str(number) for number in range(4000)]
    uniform, beta, normal = random(clips=clips).uniform(-1, 3), random(clips=clips).beta(0.4), random().normal(4000)
    assert -1 <= uniform.min() < -0.9
    assert 2.9 < uniform.max() < 3
    assert uniform.mean().item() == pytest.approx(1, abs=0.1)
    assert beta.mean().item() == pytest.approx(0.5, abs=0.03)
    assert beta.var().item() == pytest.approx(1 / (4 * (2 * 0.4 + 1)), abs=0.01)
    assert normal.std().item() == pytest.approx(1, abs=0.03)
    assert normal.mean().item() == pytest.approx(0, abs=0.03)


def test_uniform_stays_below_its_upper_end():
    """The largest double below 1 would round to 1 in float32; a crop would then begin one step too late."""

    class Largest:
        def random(self):
            return math.nextafter(1, 0)

    numbers = random(clips=["a"])
    numbers.generators = [Largest()]
    assert numbers.uniform().item() < 1


# Operations on single clips


@each_clipwise
def test_a_clip_is_changed_alike_alone_and_in_any_batch(operation, kind, x, lengths):
    augmentation = Augmentation([operation])
    together = augmentation.clipwise(kind, x, lengths, 1, 5, CLIPS)
    backwards = augmentation.clipwise(kind, x.flip(0), lengths.flip(0), 1, 5, CLIPS[::-1]).flip(0)
    torch.testing.assert_close(together, backwards)
    for row, length in enumerate(lengths.tolist()):
        alone = augmentation.clipwise(
            kind, x[row : row + 1, :length], lengths[row : row + 1], 1, 5, CLIPS[row : row + 1]
        )
        torch.testing.assert_close(together[row, :length], alone[0])


@each_clipwise
def test_same_seed_and_epoch_same_result_and_otherwise_another(operation, kind, x, lengths):
    def run(seed, epoch):
        return Augmentation([operation]).clipwise(kind, x, lengths, seed, epoch, CLIPS)

    assert torch.equal(run(1, 0), run(1, 0))
    # Some operations only choose clips, and two epochs may choose the same few.
    assert any(not torch.equal(run(1, 0), run(1, epoch)) for epoch in range(1, 8))
    assert any(not torch.equal(run(1, 0), run(seed, 0)) for seed in range(2, 9))


@each_clipwise
def test_padding_stays_zero(operation, kind, x, lengths):
    out = Augmentation([operation]).clipwise(kind, x, lengths, 1, 0, CLIPS)
    assert not torch.equal(out, x)
    assert (out[~clip_mask(lengths, x.shape[1])] == 0).all()


@pytest.mark.parametrize("make", [Noise, Gain, SpecAugment])
@pytest.mark.parametrize(("probability", "fewest", "most"), [(0.0, 0, 0), (0.3, 35, 85), (1.0, 195, 200)])
def test_the_probability_is_that_of_a_clip_being_changed(make, probability, fewest, most):
    clips, x = [str(number) for number in range(200)], torch.rand(200, 30, 40)
    operation, lengths = make(probability=probability), torch.full((200,), 30)
    kind, x = ("features", x) if make is SpecAugment else ("sound", x[:, :, 0])
    out = Augmentation([operation]).clipwise(kind, x, lengths, 1, 0, clips)
    assert fewest <= (out != x).flatten(1).any(1).sum().item() <= most


def snr_db(clean, noisy):
    """Return the signal-to-noise ratios [B] in dB."""
    return 10 * (clean.square().sum(1) / (noisy - clean).square().sum(1)).log10()


@pytest.mark.parametrize("snr", [-5.0, 10.0, 30.0])
def test_noise_has_exactly_the_ratio_that_was_asked_for(snr):
    out = Noise(snr, snr, probability=1.0)(SOUND, SAMPLES, random())
    torch.testing.assert_close(snr_db(SOUND, out), torch.full((5,), snr), rtol=0, atol=0.1)


def test_noise_ratios_lie_in_the_range_and_differ():
    ratios = snr_db(SOUND, Noise(5.0, 30.0, probability=1.0)(SOUND, SAMPLES, random()))
    assert (ratios > 4.9).all()
    assert (ratios < 30.1).all()
    assert ratios.max() - ratios.min() > 1


def test_noise_leaves_a_silent_clip_silent():
    silence = torch.zeros(2, 500)
    assert torch.equal(Noise(probability=1.0)(silence, torch.tensor([500, 300]), random(clips=CLIPS[:2])), silence)


def test_gain_is_one_factor_a_clip_within_the_range():
    out = Gain(-6.0, 6.0, probability=1.0)(SOUND, SAMPLES, random())
    gains = 20 * (out.norm(dim=1) / SOUND.norm(dim=1)).log10()
    assert (gains.abs() < 6.001).all()
    assert gains.max() - gains.min() > 1
    torch.testing.assert_close(out, SOUND * 10 ** (gains[:, None] / 20), rtol=1e-4, atol=1e-6)


def test_gain_is_in_decibels():
    out = Gain(20.0, 20.0, probability=1.0)(SOUND, SAMPLES, random())
    torch.testing.assert_close(out, SOUND * 10)


@pytest.mark.parametrize("epoch", range(4))
def test_specaugment_masks_a_few_stretches_and_bands_with_the_clips_own_mean(epoch):
    out = SpecAugment(2, 0.15, 2, 12, probability=1.0)(FEATURES, FRAMES, random(epoch=epoch))
    for x, masked, length in zip(FEATURES, out, FRAMES.tolist(), strict=True):
        x, masked = x[:length], masked[:length]
        changed = masked != x
        times, bands = changed.all(1), changed.all(0)
        assert torch.equal(changed, times[:, None] | bands[None])
        assert times.sum() <= 2 * (0.15 * length + 1)
        assert bands.sum() <= 2 * (12 + 1)
        runs = [int(places[0]) + int((~places[:-1] & places[1:]).sum()) for places in (times, bands)]
        assert max(runs) <= 2
        torch.testing.assert_close(masked[changed], x.mean(0).expand_as(x)[changed])


@pytest.mark.parametrize(("settings", "by_time", "by_band"), [((3, 0.3, 0, 12), 1, 0), ((0, 0.3, 2, 12), 0, 1)])
def test_specaugment_masks_only_what_is_asked_for(settings, by_time, by_band):
    changed = SpecAugment(*settings, probability=1.0)(FEATURES, FRAMES, random())[0] != FEATURES[0]
    assert changed.all(1).any() == by_time
    assert changed.all(0).any() == by_band


# Operations across a batch


@pytest.mark.parametrize("shape", [(50,), (20, 8)], ids=["sound", "features"])
def test_mixup_mixes_inputs_and_targets_by_the_same_share_with_one_other_clip(shape):
    x, targets = batch_of(torch.full((5,), shape[0]), *shape[1:]), torch.eye(5)
    mixed, soft = Augmentation([Mixup(probability=1.0)]).across("mix_features", x, same(x), targets, 1, 0, CLIPS)
    torch.testing.assert_close(soft.sum(1), torch.ones(5))
    assert (soft >= 0).all()
    assert (soft.diagonal() >= 0.5).all()
    assert ((soft > 0).sum(1) <= 2).all()
    assert (soft.diagonal() < 1).any()
    torch.testing.assert_close(mixed, torch.einsum("ij,j...->i...", soft, x))


def test_mixup_changes_no_clip_that_is_not_chosen():
    x, targets = batch_of(torch.full((200,), 6)), torch.eye(200)
    mixed, soft = Mixup(probability=0.5)(x, same(x), targets, random(clips=[str(number) for number in range(200)]))
    kept = soft.diagonal() == 1
    assert 60 < kept.sum() < 140
    assert torch.equal(mixed[kept], x[kept])
    assert torch.equal(soft[kept], targets[kept])


def test_mixup_keeps_soft_targets_distributions_and_a_single_clip_itself():
    soft = torch.rand(5, 4).softmax(1)
    x = torch.randn(5, 10)
    out = Mixup(probability=1.0)(x, same(x), soft, random())[1]
    torch.testing.assert_close(out.sum(1), torch.ones(5))
    x, target = torch.randn(1, 10), torch.tensor([[0.0, 1.0]])
    mixed, kept = Mixup(probability=1.0)(x, same(x), target, random(clips=["a"]))
    torch.testing.assert_close(mixed, x)
    torch.testing.assert_close(kept, target)


def test_mixup_of_sounds_cuts_the_neighbour_at_the_clips_own_end():
    mixing = Augmentation([SoundMixup(probability=1.0)])
    mixed, soft = mixing.across("mix_sound", SOUND, SAMPLES, torch.eye(5), 1, 0, CLIPS)
    inside = clip_mask(SAMPLES, SOUND.shape[1])
    torch.testing.assert_close(mixed, (soft @ SOUND) * inside)
    assert (soft.diagonal() < 1).any()
    untouched, same_targets = mixing.across("mix_features", SOUND, SAMPLES, torch.eye(5), 1, 0, CLIPS)
    assert torch.equal(untouched, SOUND)
    assert torch.equal(same_targets, torch.eye(5))


# The list of operations


def test_no_operations_change_nothing():
    assert torch.equal(Augmentation().clipwise("sound", SOUND, SAMPLES, 1, 0, CLIPS), SOUND)
    x, targets = Augmentation().across("mix_features", SOUND, SAMPLES, torch.eye(5), 1, 0, CLIPS)
    assert torch.equal(x, SOUND)
    assert torch.equal(targets, torch.eye(5))


def test_each_operation_works_on_its_own_kind_of_input():
    operations = [Gain(6.0, 6.0, probability=1.0), SpecAugment(probability=1.0), Mixup(probability=1.0)]
    augmentation = Augmentation(operations)
    for kind, x, lengths, own in (("sound", SOUND, SAMPLES, 0), ("features", FEATURES, FRAMES, 1)):
        out = augmentation.clipwise(kind, x, lengths, 1, 0, CLIPS)
        assert torch.equal(out, operations[own](x, lengths, random(operation=own)))


def test_operations_are_applied_in_the_order_of_the_list():
    noise, louder = Noise(10.0, 10.0, probability=1.0), Gain(20.0, 20.0, probability=1.0)
    out = Augmentation([noise, louder]).clipwise("sound", SOUND, SAMPLES, 1, 0, CLIPS)
    noisy = Augmentation([noise]).clipwise("sound", SOUND, SAMPLES, 1, 0, CLIPS)
    torch.testing.assert_close(out, noisy * 10)


def test_two_operations_alike_draw_different_numbers():
    one = Augmentation([Gain(probability=1.0)]).clipwise("sound", SOUND, SAMPLES, 1, 0, CLIPS)
    two = Augmentation([Gain(probability=1.0), Gain(probability=1.0)]).clipwise("sound", SOUND, SAMPLES, 1, 0, CLIPS)
    assert not torch.allclose(two * SOUND, one * one)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Noise(probability=1.5), r"Noise: probability is 1\.5"),
        (lambda: Mixup(probability=-0.1), r"Mixup: probability is -0\.1"),
        (lambda: Noise(snr_low=30.0, snr_high=5.0), r"snr_low is 30\.0 and snr_high is 5\.0"),
        (lambda: Gain(db_low=1.0, db_high=0.0), r"db_low is 1\.0"),
        (lambda: Speed([]), "factors"),
        (lambda: Speed([3.0]), "from 0.5 to 2"),
        (lambda: Mixup(alpha=0.0), r"alpha is 0\.0; expected more than 0"),
        (lambda: Augmentation([SpecAugment]), "SpecAugment"),
    ],
)
def test_a_wrong_setting_is_named(make, says):
    with pytest.raises(UserError, match=says):
        make()


@pytest.mark.parametrize("factor", [0.8, 0.9, 1.1, 1.25])
def test_speed_moves_a_tone_by_its_factor_and_keeps_the_length(factor):
    time = torch.arange(16_000) / 16_000
    tone = torch.sin(2 * math.pi * 400 * time)
    sound = torch.stack([tone, tone])
    sound[1, 9000:] = 0
    out = Speed([factor], probability=1.0)(sound, torch.tensor([16_000, 9000]), random(clips=["a", "b"]))
    assert out.shape == sound.shape
    assert not out[1, 9000:].any()
    for row, length in ((0, 16_000), (1, 9000)):
        middle = out[row, : length // 2]
        peak = torch.fft.rfft(middle * torch.hann_window(len(middle))).abs().argmax() * 16_000 / len(middle)
        assert peak.item() == pytest.approx(400 * factor, abs=2 * 16_000 / len(middle))
        assert middle.std().item() == pytest.approx(tone.std().item(), rel=0.05)


def test_speed_draws_among_its_factors_and_leaves_the_rest():
    time = torch.arange(3200) / 16_000
    sound = torch.sin(2 * math.pi * 400 * time).expand(200, -1)
    out = Speed([0.5, 1.0, 2.0], probability=0.9)(
        sound, torch.full((200,), 3200), random(clips=[str(n) for n in range(200)])
    )
    peaks = torch.fft.rfft(out[:, :1600]).abs()[:, 1:].argmax(1) + 1
    assert set(peaks.tolist()) == {20, 40, 80}
    assert torch.equal(Speed(probability=0.0)(SOUND, SAMPLES, random()), SOUND)


# What a sound goes through


def power(x: torch.Tensor, low: float, high: float) -> float:
    """Return the power of a sound [N] between two frequencies, Hz."""
    spectrum = torch.fft.rfft(x * torch.hann_window(len(x))).abs().square()
    hertz = torch.fft.rfftfreq(len(x), 1 / 16_000)
    return spectrum[(hertz >= low) & (hertz < high)].sum().item()


def write(folder, name: str, sound: torch.Tensor) -> None:
    from ser import audio

    audio.write(folder / name, sound.numpy())


def applied(operation, x=SOUND, lengths=SAMPLES, clips=CLIPS):
    return operation(x, lengths, random(clips=clips))


@pytest.mark.parametrize("tilt", [0.0, 1.0, 2.0])
def test_noise_falls_with_frequency_as_its_tilt_says(tilt):
    lengths = torch.tensor([64_000])
    clean = torch.zeros(1, 64_000)
    clean[0, 100] = 1.0
    noise = (applied(Noise(0.0, 0.0, tilt, tilt, probability=1.0), clean, lengths, ["a"]) - clean)[0]
    drop = power(noise, 200, 400) / power(noise, 3200, 6400) * 16  # bands of 200 and 3200 Hz
    assert math.log2(drop) / 4 == pytest.approx(tilt, abs=0.25)


@pytest.mark.parametrize("snr", [-5.0, 0.0, 12.5])
def test_recorded_noise_has_exactly_the_ratio_that_was_asked_for(tmp_path, snr):
    generator = torch.Generator().manual_seed(1)
    for number, size in enumerate((900, 9000)):  # shorter and longer than the clips
        write(tmp_path / "deep", f"{number}.wav", 0.1 * torch.randn(size, generator=generator).clamp(-3, 3))
    out = applied(BackgroundNoise(str(tmp_path), snr, snr, probability=1.0))
    for row, length in enumerate(SAMPLES.tolist()):
        noise = out[row, :length] - SOUND[row, :length]
        ratio = 10 * torch.log10(SOUND[row, :length].square().sum() / noise.square().sum())
        assert ratio.item() == pytest.approx(snr, abs=0.1)
        assert not out[row, length:].any()
    assert torch.equal(out, applied(BackgroundNoise(str(tmp_path), snr, snr, probability=1.0)))
    assert_alike_alone(BackgroundNoise(str(tmp_path), snr, snr, probability=1.0), out)


def test_polarity_turns_the_sign_and_shift_moves_by_whole_samples():
    assert torch.equal(applied(Polarity(1.0)), -SOUND)
    out = applied(Shift(0.4, 1.0))
    for row, length in enumerate(SAMPLES.tolist()):
        clip, moved = SOUND[row, :length], out[row, :length]
        fits = [
            shift
            for shift in range(-length * 4 // 10 - 1, length * 4 // 10 + 2)
            if torch.equal(moved[max(0, shift) : length + min(0, shift)], clip[max(0, -shift) : length - max(0, shift)])
        ]
        assert fits
        assert (moved == 0).sum() >= abs(fits[0])


@pytest.mark.parametrize("step", [-12, -3, 2, 12])
def test_pitch_moves_a_tone_by_semitones_and_keeps_its_length(step):
    time = torch.arange(16_000) / 16_000
    moved = Pitch().moved(0.5 * torch.sin(2 * math.pi * 500 * time)[None], step)[0]
    assert len(moved) == 16_000
    middle = moved[2000:10_000] if step > 0 else moved[2000:14_000]
    peak = torch.fft.rfft(middle * torch.hann_window(len(middle)), 64_000).abs().argmax().item() / 4
    assert peak == pytest.approx(500 * 2 ** (step / 12), rel=0.01)


def test_pitch_is_the_same_alone_and_leaves_zeros_after_each_end():
    out = applied(Pitch(3, probability=1.0))
    for row, length in enumerate(SAMPLES.tolist()):
        assert not out[row, length:].any()
        assert (out[row, :length] - SOUND[row, :length]).abs().max() > 1e-3
    assert_alike_alone(Pitch(3, probability=1.0), out)


def assert_alike_alone(operation, out: torch.Tensor) -> None:
    """See that each clip [N] of a padded batch came out as it does without the others and without padding."""
    for row, length in enumerate(SAMPLES.tolist()):
        one = slice(row, row + 1)
        alone = operation(SOUND[one, :length], SAMPLES[one], random(clips=CLIPS[one]))
        torch.testing.assert_close(alone[0], out[row, :length], rtol=1e-4, atol=1e-5)


def test_a_room_rings_as_long_as_asked_and_keeps_the_energy():
    click = torch.zeros(1, 16_000)
    click[0, 1000] = 1.0
    out = applied(Reverb(0.4, 0.4, 6.0, 6.0, probability=1.0), click, torch.tensor([16_000]), ["a"])[0]
    assert out.square().sum().item() == pytest.approx(1.0, rel=1e-4)
    direct, tail = out[1000] ** 2, out[1001:].square()
    assert 10 * math.log10(direct / tail.sum()) == pytest.approx(6.0, abs=0.3)
    early, late = tail[:1600].sum(), tail[3200:4800].sum()  # 0.2 s apart: 30 dB
    assert 10 * math.log10(early / late) == pytest.approx(30, abs=1.5)


def test_a_recorded_room_is_a_convolution_with_it(tmp_path):
    answer = torch.tensor([0.1, 0.8, 0.0, 0.4])
    padded = torch.cat([answer, torch.zeros(1600)])
    write(tmp_path, "hall.wav", padded)
    out = applied(RecordedRooms(str(tmp_path), 1.0))
    for row, length in enumerate(SAMPLES.tolist()):
        clip = SOUND[row, :length]
        wet = clip + 0.5 * torch.cat([torch.zeros(2), clip[:-2]])  # from the loudest sample on
        wet = wet * (clip.square().sum() / wet.square().sum()).sqrt()
        torch.testing.assert_close(out[row, :length], wet, rtol=1e-2, atol=1e-3)


def test_a_telephone_keeps_its_band_and_a_low_pass_what_is_below_its_edge():
    noise = 0.1 * torch.randn(1, 32_000, generator=torch.Generator().manual_seed(1))
    lengths = torch.tensor([32_000])

    def kept(operation, low, high):
        out = applied(operation, noise, lengths, ["a"])[0]
        return 10 * math.log10(power(out, low, high) / power(noise[0], low, high))

    phone = Band(probability=1.0)
    assert kept(phone, 600, 2000) == pytest.approx(0, abs=0.2)
    assert kept(phone, 20, 100) < -30
    assert kept(phone, 6800, 7800) < -20
    assert kept(LowPass(2000, 2000, probability=1.0), 50, 1000) == pytest.approx(0, abs=0.1)
    assert kept(LowPass(2000, 2000, probability=1.0), 4000, 4400) < -23
    edge = applied(
        LowPass(2000, 2000, probability=1.0), torch.sin(torch.arange(32_000) / 8 * math.pi * 2)[None], lengths, ["a"]
    )
    assert edge[0, 8000:24_000].std().item() == pytest.approx(math.sqrt(0.25), rel=0.02)  # 3 dB down at the edge


def test_clipping_cuts_at_a_share_of_the_peak():
    out = applied(Clipping(0.5, 0.5, probability=1.0))
    for row in range(len(SOUND)):
        peak = SOUND[row].abs().max()
        assert out[row].abs().max().item() == pytest.approx(0.5 * peak.item())
        inside = SOUND[row].abs() < 0.5 * peak
        assert torch.equal(out[row][inside], SOUND[row][inside])


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Shift(1.0), "share is 1"),
        (lambda: Pitch(0), "expected 1 to 12"),
        (lambda: Reverb(0.0, 0.5), "more than 0"),
        (lambda: Clipping(0.0, 0.5), "shares of the peak"),
        (lambda: Band(4000.0, 300.0), "edge_low is 4000"),
        (lambda: BackgroundNoise("/no/such/folder").ready(), "is not there"),
        (lambda: RecordedRooms("/no/such/folder").ready(), "is not there"),
    ],
)
def test_wrong_surroundings_are_named(make, says):
    with pytest.raises(UserError, match=says):
        make()
