"""What each corpus is: official lists, name grammars, who speaks, what is left out."""

from collections import Counter

import pytest

from ser import corpora, demo
from ser.corpora import CORPORA, corpus_named, demographics
from ser.errors import UserError
from ser.labels import EMOTIONS, LABEL_SETS

FACTS = {  # clips, speakers, male speakers, clips by class: as published
    "crema_d": (7442, 91, 48, {name: 1087 if name == "neutral" else 1271 for name in LABEL_SETS["crema_d"]}),
    "ravdess": (1440, 24, 12, {name: 96 if name == "neutral" else 192 for name in EMOTIONS}),
}


def official(name: str) -> list[dict[str, str]]:
    """Return what the grammar tells of each official clip."""
    parsed = [corpus_named(name).parse(clip) for clip in corpus_named(name).official()]
    assert None not in parsed
    return parsed


@pytest.mark.parametrize("name", FACTS)
def test_the_official_list_has_the_published_counts(name):
    clips, speakers, male, classes = FACTS[name]
    fields = official(name)
    assert len({clip["clip"] for clip in fields}) == len(fields) == clips
    sexes = {(clip["speaker"], clip["sex"]) for clip in fields}
    assert len({speaker for speaker, _ in sexes}) == len(sexes) == speakers
    assert Counter(sex for _, sex in sexes) == {"male": male, "female": speakers - male}
    assert Counter(clip["emotion"] for clip in fields) == classes


def test_the_demo_corpus_is_balanced_and_lists_what_its_generator_makes():
    fields = official("demo")
    assert sorted(clip["clip"] for clip in fields) == demo.clip_names()
    assert len(set(Counter((clip["speaker"], clip["emotion"]) for clip in fields).values())) == 1
    assert {clip["sex"] for clip in fields} == {"female", "male"}


@pytest.mark.parametrize("name", [name for name in CORPORA if corpus_named(name).official()])
def test_a_name_of_the_official_list_reads_as_itself_and_its_class_is_of_the_corpus(name):
    entry = corpus_named(name)
    assert all(entry.parse(clip)["clip"] == clip for clip in entry.official())
    assert {clip["emotion"] for clip in official(name)} == set(LABEL_SETS[name])
    assert not [clip for clip in entry.official() if entry.left_out(clip)]


@pytest.mark.parametrize("name", CORPORA)
def test_clips_known_to_be_odd_are_official_ones(name):
    assert set(corpus_named(name).known_odd) <= set(corpus_named(name).official())


def test_odd_clips_that_are_known_are_flagged():
    assert "silence" in corpus_named("crema_d").known_odd["1076_MTI_SAD_XX"]
    for clip in ("1006_TIE_HAP_XX", "1006_TIE_NEU_XX", "1013_WSI_DIS_XX", "1017_IWW_FEA_XX"):
        assert "identical" in corpus_named("crema_d").known_odd[clip]
    for clip in ("03-01-03-01-02-01-07", "03-01-03-01-02-02-07"):
        assert "identical" in corpus_named("ravdess").known_odd[clip]
    assert sum("stereo" in why for why in corpus_named("ravdess").known_odd.values()) == 5


def test_every_official_crema_d_file_has_a_checksum_and_a_size():
    for entry in corpus_named("crema_d").official().values():
        assert len(bytes.fromhex(entry.sha256)) == 32
        assert entry.size > 44


def test_a_crema_d_name_is_read():
    fields = corpus_named("crema_d").parse("1002_IEO_ANG_HI")
    assert fields == {
        "clip": "1002_IEO_ANG_HI", "speaker": "1002", "sex": "female", "emotion": "angry", "intensity": "high",
        "statement": "IEO", "repetition": "1",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("code", "intensity"), [("LO", "low"), ("MD", "medium"), ("HI", "high"), ("XX", "unspecified")]
)
def test_crema_d_intensities(code, intensity):
    assert corpus_named("crema_d").parse(f"1001_IEO_SAD_{code}")["intensity"] == intensity


def test_the_older_name_of_a_crema_d_clip_is_the_official_clip():
    fields = corpus_named("crema_d").parse("1040_ITH_SAD_X")
    assert fields["clip"] == "1040_ITH_SAD_XX"
    assert fields["clip"] in corpus_named("crema_d").official()
    assert fields["intensity"] == "unspecified"


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("crema_d", ("", "1001", "1001_DFA_ANG", "1001_DFA_ANG_XX_2", "1092_DFA_ANG_XX", "1000_DFA_ANG_XX")),
        ("crema_d", ("1001_ABC_ANG_XX", "1001_DFA_SUR_XX", "1001_DFA_ANG_YY", "1001-DFA-ANG-XX", "1001_dfa_ang_xx")),
        ("ravdess", ("", "03-01-05-01-01-01", "03-01-05-01-01-01-25", "03-01-05-01-01-01-00", "03-01-09-01-01-01-01")),
        ("ravdess", ("03-01-05-03-01-01-01", "03-01-05-01-03-01-01", "03-01-05-01-01-03-01", "3-1-5-1-1-1-1")),
        ("ravdess", ("03-01-05-01-01-01-01-01", "03_01_05_01_01_01_01", "04-01-05-01-01-01-01")),
        ("demo", ("", "s25_angry_t1_r1", "s00_angry_t1_r1", "s01_calm_t1_r1", "s01_angry_t9_r1", "s01_angry_t1_r3")),
    ],
)
def test_a_name_that_is_not_of_the_corpus_is_not_read(name, wrong):
    assert [clip for clip in wrong if corpus_named(name).parse(clip) is not None] == []
    assert [clip for clip in wrong if corpus_named(name).left_out(clip) is not None] == []


def test_a_ravdess_name_is_read():
    assert corpus_named("ravdess").parse("03-01-06-02-01-02-12") == {
        "clip": "03-01-06-02-01-02-12", "speaker": "12", "sex": "female", "emotion": "fearful", "intensity": "strong",
        "statement": "01", "repetition": "02",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["03-01-06-02-01-02-²²", "03-01-06-02-01-02-١٢"])
def test_digits_of_other_scripts_are_no_ravdess_name(name):
    assert corpus_named("ravdess").parse(name) is None
    assert corpus_named("ravdess").left_out(name) is None


def test_ravdess_actors_with_odd_numbers_are_male():
    sexes = {clip["speaker"]: clip["sex"] for clip in official("ravdess")}
    assert sexes == {f"{actor:02d}": "male" if actor % 2 else "female" for actor in range(1, 25)}


def test_ravdess_emotions_by_number():
    numbers = {f"{n:02d}": corpus_named("ravdess").parse(f"03-01-{n:02d}-01-01-01-01")["emotion"] for n in range(1, 9)}
    assert list(numbers.values()) == [
        "neutral", "calm", "happy", "sad", "angry", "fearful", "disgust", "surprised",
    ]  # fmt: skip


def test_ravdess_neutral_has_no_strong_intensity():
    assert corpus_named("ravdess").parse("03-01-01-01-01-01-01") is not None
    assert corpus_named("ravdess").parse("03-01-01-02-01-01-01") is None
    intensities = {(clip["emotion"], clip["intensity"]) for clip in official("ravdess")}
    assert len(intensities) == 15
    assert ("neutral", "strong") not in intensities


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("03-02-05-01-01-01-01", "song"),
        ("01-02-03-01-01-01-09", "song"),
        ("02-02-03-01-01-01-09", "song"),
        ("01-01-05-01-01-01-01", "video"),
        ("02-01-05-01-01-01-24", "video"),
    ],
)
def test_ravdess_song_and_video_are_recognised_and_are_not_speech_clips(name, kind):
    assert corpus_named("ravdess").left_out(name) == kind
    assert corpus_named("ravdess").parse(name) is None


def test_an_unknown_corpus_names_the_nearest():
    with pytest.raises(UserError, match="did you mean 'crema_d'"):
        corpus_named("cremad")


HEADER = '"ActorID","Age","Sex","Race","Ethnicity"\n'


@pytest.mark.parametrize("place", [".", ".."])
def test_demographics_lie_beside_the_sound_or_one_above(tmp_path, place):
    raw = tmp_path / "AudioWAV"
    raw.mkdir()
    table = HEADER + '1001,51,"Male","Caucasian","Not Hispanic"\n1002,21,"Female","African American","Hispanic"\n'
    (raw / place / "VideoDemographics.csv").write_text(table)
    assert demographics(raw) == {
        "1001": {"age": "51", "sex": "male", "race": "caucasian", "ethnicity": "not hispanic"},
        "1002": {"age": "21", "sex": "female", "race": "african american", "ethnicity": "hispanic"},
    }


def test_the_demographics_beside_the_sound_win(tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "VideoDemographics.csv").write_text(HEADER + "1001,99,Male,Asian,Hispanic\n")
    (tmp_path / "raw/VideoDemographics.csv").write_text(HEADER + "1001,51,Male,Asian,Hispanic\n")
    assert demographics(tmp_path / "raw")["1001"]["age"] == "51"


def test_without_demographics_there_are_none(tmp_path):
    assert demographics(tmp_path) == {}


def test_a_demographics_file_that_is_another_table_is_refused_with_its_name(tmp_path):
    (tmp_path / "VideoDemographics.csv").write_text("speaker,age\n1001,51\n")
    with pytest.raises(UserError, match=r"VideoDemographics\.csv: line 1: .*'ActorID'"):
        demographics(tmp_path)


def test_the_sexes_that_travel_with_the_code_cover_every_crema_d_speaker():
    assert set(corpora.crema_d_sexes()) == {str(speaker) for speaker in range(1001, 1092)}
