"""The published layouts, written here as they are published, and what a copy of them may lack."""

import json
from pathlib import Path

import pytest

from command import run
from duolora.errors import FileRefused, InputError
from duolora.metrics.datasets.dataset import Concept, problems, read_dataset
from duolora.metrics.datasets.manifests import Manifest, Pairing, choose_pairs, lacking, read_manifest, write_manifest
from patterns import pattern

LINE = "'{}'.format(unique_token, class_token)"


def index_of(objects=25, live=25, classes="backpack,backpack\nbear_plushie,stuffed animal\ndog6,dog\ncat,cat"):
    lists = []
    for count, what in ((objects, "on top of a rug"), (live, "in a chef's hat")):
        lines = [LINE.format(f"a {{0}} {{1}} {what} {k}") for k in range(count)]
        lists.append("prompt_list = [\n" + ",\n".join(lines) + "\n]\n")
    heads = ("Object Prompts", "Live Subject Prompts")
    prompts = "\n".join(f"{head}\n\n{body}" for head, body in zip(heads, lists, strict=True))
    return f"Classes\n\nsubject_name,class\n{classes}\n\nPrompts\n\n{prompts}"


def image(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pattern(20, 14, seed).save(path)


@pytest.fixture
def dreambooth(tmp_path):
    for subject in ("backpack", "bear_plushie", "dog6", "cat"):
        for k in range(2):
            image(tmp_path / "dataset" / subject / f"{k:02d}.jpg", k)
    (tmp_path / "dataset" / "prompts_and_classes.txt").write_text(index_of())
    return tmp_path


@pytest.fixture
def styledrop(tmp_path):
    entries = {
        "image_01_01.jpg": ["A house", "in watercolor painting style"],
        "image_02_01.jpg": ["A cat", "in wooden sculpture"],
    }
    for name in entries:
        image(tmp_path / "data" / name)
    (tmp_path / "data.json").write_text(json.dumps(entries))
    return tmp_path


@pytest.fixture
def concepts(tmp_path):
    entries = [
        {
            "instance_prompt": f"photo of a <new1> {words}",
            "class_prompt": words,
            "instance_data_dir": f"./benchmark_dataset/{name}",
            "class_data_dir": f"./regularization/{name}",
            "prompt_filename": f"prompts/{words}.txt",
        }
        for name, words in (("scene_barn", "barn"), ("pet_cat1", "cat"))
    ]
    for entry in entries:
        image(tmp_path / entry["instance_data_dir"] / "1.jpeg")
        (tmp_path / "prompts").mkdir(exist_ok=True)
        (tmp_path / entry["prompt_filename"]).write_text(
            "photo of a {}. \n\n{} in snowy ice.\n{} painting by artist claude monet.\na red {}.\nmoongate in a forest."
        )
    (tmp_path / "dataset.json").write_text(json.dumps(entries))
    return tmp_path


@pytest.mark.parametrize("inside", ["", "dataset"])
def test_dreambooth(dreambooth, inside):
    found = read_dataset(dreambooth / inside)
    assert found.layout == "dreambooth"
    assert list(found.contents) == ["backpack", "bear_plushie", "dog6", "cat"]
    bear, dog = found.contents["bear_plushie"], found.contents["dog6"]
    assert [path.name for path in bear.images] == ["00.jpg", "01.jpg"]
    assert (bear.words, len(bear.prompts), len(dog.prompts)) == ("stuffed animal", 25, 25)
    assert bear.asked("sks stuffed animal")[0] == "a sks stuffed animal on top of a rug 0"
    assert dog.asked("sks dog")[3] == "a sks dog in a chef's hat 3"
    assert found.contents["cat"].prompts == dog.prompts != bear.prompts
    assert problems(found) == []


def test_dreambooth_index_is_never_run(dreambooth, tmp_path):
    index = dreambooth / "dataset" / "prompts_and_classes.txt"
    marker = tmp_path / "ran"
    evil = f"__import__('pathlib').Path({str(marker)!r}).touch() or 'a {{0}} {{1}}'.format(unique_token, class_token)"
    index.write_text(index_of(objects=24).replace("prompt_list = [\n", f"prompt_list = [\n{evil},\n", 1))
    with pytest.raises(FileRefused, match="expected 25 object prompts"):
        read_dataset(dreambooth)
    assert not marker.exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (index_of(objects=24), r"expected 25 object prompts with '\{0\} \{1\}' in them, found 24"),
        (index_of(live=0), "25 live subject prompts.*found 0"),
        (index_of(classes=""), "`subject,class` under `Classes`, found none"),
        (index_of().replace("{0} {1} on top", "dog on top"), "found 0"),
        ("", "found none"),
    ],
)
def test_a_dreambooth_index_that_is_not_whole_is_refused(dreambooth, text, message):
    (dreambooth / "dataset" / "prompts_and_classes.txt").write_text(text)
    with pytest.raises(FileRefused, match=message):
        read_dataset(dreambooth)


def test_styledrop(styledrop):
    found = read_dataset(styledrop)
    assert found.layout == "styledrop"
    house = found.styles["image_01_01"]
    assert (house.words, house.style, len(house.images)) == ("A house", "watercolor painting style", 1)
    assert not found.contents
    assert problems(found) == []


def test_customconcept101(concepts):
    found = read_dataset(concepts)
    assert found.layout == "customconcept101"
    assert list(found.contents) == ["scene_barn", "pet_cat1"]
    barn = found.contents["scene_barn"]
    assert barn.asked("<new1> barn")[:2] == ["photo of a <new1> barn", "<new1> barn in snowy ice"]
    assert (len(barn.prompts), barn.fitting()) == (5, ("{subject} in snowy ice",))
    assert problems(found) == []
    clone = concepts.parent / "clone"
    clone.mkdir()
    concepts.rename(clone / "customconcept101")
    assert list(read_dataset(clone).contents) == list(found.contents)
    (clone / "customconcept101" / "benchmark_dataset").rename(clone / "elsewhere")
    assert any("a download apart from the repository" in line for line in problems(read_dataset(clone)))


@pytest.mark.parametrize(
    ("prompt", "fits"),
    [
        ("a {subject} on top of a purple rug in a forest", True),
        ("{subject} on a highway, with a golden retriever in the driver's seat", True),
        ("a {subject} wearing a red hat", True),
        ("a purple {subject}", False),
        ("a sky blue color {subject}", False),
        ("{subject} in rainbow colors", False),
        ("a cube shaped {subject}", False),
        ("Georgia O'Keeffe style {subject} painting", False),
        ("{subject} made of crystal", False),
        ("A Monet-inspired scene with {subject}", False),
        ("a {subject} carved from stone", False),
        ("Cubist rendition of the {subject}", False),
        ("a green velvet {subject} on a chair", False),
        ("a transparent {subject}", False),
        ("a {subject} filled with tea, replaced after lunch", True),
        ("a sleeping cat", False),
    ],
)
def test_prompts_that_name_another_style_fit_none(prompt, fits):
    assert Concept("x", (), prompts=(prompt,)).fitting() == ((prompt,) if fits else ())


def test_names_that_are_no_words_are_asked_for():
    assert Concept("bear_plushie", ()).in_words("", {}, "content") == "bear plushie"
    assert Concept("image_01_01", ()).in_words("glowing style", {}, "style") == "glowing style"
    assert Concept("sty_8", ()).in_words("", {"sty_8": "ink style"}, "style") == "ink style"
    with pytest.raises(InputError, match=r'style sty_8: expected words.*--words sty_8="…"'):
        Concept("sty_8", ()).in_words("", {}, "style")


def pairs(*arguments, fails=False):
    done = run("datasets", "pairs", *arguments)
    assert done.exit_code == int(fails), done.output
    return done.stderr if fails else done.stdout


def test_pairs_are_counted_before_anything_is_made(dreambooth, tmp_path):
    image(tmp_path / "styles_of" / "styles" / "watercolor_painting3" / "1.jpg")
    given = ("--contents", dreambooth, "--styles", tmp_path / "styles_of", "--out", tmp_path / "p.json")
    assert "expected words" in pairs(*given, fails=True)
    assert not (tmp_path / "p.json").exists()
    words = ("--words", "watercolor_painting3=watercolor painting style")
    assert "4 pairs, 4 images of each prompt; 16 images for each row" in pairs(*given, *words)
    found = read_manifest(tmp_path / "p.json")
    assert found.prompts == ("a {subject} in {style}",)
    assert found.words == {"watercolor_painting3": "watercolor painting style"}
    assert "0 of 50 prompts name another style" in pairs(*given, *words, "--own-prompts")
    assert read_manifest(tmp_path / "p.json").prompts == ()
    for wrong, message in (
        (("--prompt", "a dog"), "expected {subject} and {style} in each, found 'a dog'"),
        (("--words", "ink=ink style"), "the name of a subject or style there"),
        (("--prompt", "a {subject} in {style}", "--own-prompts"), "got both"),
    ):
        assert message in pairs(*given, *words, *wrong, fails=True)
    exchanged = ("--contents", tmp_path / "styles_of", "--styles", dreambooth, "--out", tmp_path / "q.json")
    assert "are the two exchanged?" in pairs(*exchanged, fails=True)
    assert not (tmp_path / "q.json").exists()


def test_the_split_of_lora_rar():
    found = read_manifest(Path(__file__).parents[2] / "benchmarks" / "manifests" / "lora-rar.json")
    assert len(set(found.pairs)) == 25
    assert {pair.content for pair in found.pairs} == {"dog8", "cat2", "wolf_plushie", "teapot", "can"}
    assert {pair.style for pair in found.pairs} == set(found.words)
    assert len(found.seeds) == 10


def test_an_index_cannot_lead_out_of_its_folder(concepts):
    text = (concepts / "dataset.json").read_text().replace("prompts/barn.txt", "../../secret.txt")
    (concepts / "dataset.json").write_text(text)
    with pytest.raises(FileRefused, match="leads out of the data set"):
        read_dataset(concepts)


@pytest.mark.parametrize("subjects", ["contents", "objects", "subjects"])
def test_any_folders(subjects, tmp_path):
    image(tmp_path / subjects / "dog" / "1.png")
    image(tmp_path / subjects / "cat.png")
    image(tmp_path / "styles" / "ink" / "a.webp")
    (tmp_path / "styles" / ".hidden").mkdir()
    found = read_dataset(tmp_path)
    assert (list(found.contents), list(found.styles)) == (["cat", "dog"], ["ink"])
    assert problems(found) == []


def test_the_check_says_what_is_missing(dreambooth):
    (dreambooth / "dataset" / "backpack").rename(dreambooth / "elsewhere")
    (dreambooth / "dataset" / "dog6" / "00.jpg").write_bytes(b"broken")
    for path in (dreambooth / "dataset" / "cat").iterdir():
        path.unlink()
    found = problems(read_dataset(dreambooth))
    assert any("no such folder of subject backpack" in line for line in found)
    assert "backpack: no images" not in found, "which its folder's line says"
    assert any("00.jpg: not a readable image" in line for line in found)
    assert "cat: no images" in found


def test_the_check_names_lost_images_and_prompts(styledrop, concepts):
    (styledrop / "data" / "image_02_01.jpg").unlink()
    assert any("image_02_01.jpg: data.json names this image" in line for line in problems(read_dataset(styledrop)))
    (concepts / "prompts" / "cat.txt").unlink()
    found = problems(read_dataset(concepts, "customconcept101"))
    assert any("cat.txt: dataset.json names this file" in line for line in found)


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("data.json", "{", "not valid JSON"),
        ("data.json", '{"a.jpg": "words"}', "content words, style words"),
        ("dataset.json", '[{"class_prompt": "x"}]', "list of objects with instance_data_dir"),
    ],
)
def test_a_damaged_index_is_refused(file, text, message, tmp_path):
    (tmp_path / file).write_text(text)
    with pytest.raises(FileRefused, match=message):
        read_dataset(tmp_path)


def test_a_folder_of_another_kind_lists_the_layouts(tmp_path):
    with pytest.raises(InputError, match="one of the known layouts, found none.*dreambooth: .*styledrop: .*folders: "):
        read_dataset(tmp_path)
    with pytest.raises(InputError, match="expected auto, dreambooth"):
        read_dataset(tmp_path, "imagenet")
    with pytest.raises(InputError, match="no such folder"):
        read_dataset(tmp_path / "nowhere")


MANIFEST = Manifest(
    "table-1", (Pairing("dog6", "ink"), Pairing("é", "“q”")), ("a {subject} in {style}",), (0, 7), "folders"
)


def test_manifests_go_there_and_back(tmp_path):
    path = tmp_path / "pairs" / "table-1.json"
    write_manifest(path, MANIFEST)
    assert read_manifest(path) == MANIFEST
    text = path.read_text()
    assert ' ["dog6", "ink"],\n' in text
    write_manifest(path, MANIFEST)
    assert path.read_text() == text
    assert [p.name for p in path.parent.iterdir()] == ["table-1.json"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "expected a manifest of version 1, found 2"),
        ({"pairs": [["dog6"]]}, r"pairs: expected \[content, style\], found \['dog6'\]"),
        ({"pairs": []}, "at least one pair"),
        ({"seeds": [True]}, "seeds: expected a whole number, found True"),
        ({"prompts": [3]}, "prompts: expected text, found 3"),
        ({"words": {"a": 1}}, "words: expected"),
        ({"name": None}, "name: expected a str, found None"),
    ],
)
def test_a_wrong_manifest_is_refused(change, message, tmp_path):
    write_manifest(tmp_path / "m.json", MANIFEST)
    facts = json.loads((tmp_path / "m.json").read_text())
    (tmp_path / "m.json").write_text(json.dumps(facts | change))
    with pytest.raises(FileRefused, match=message):
        read_manifest(tmp_path / "m.json")


def test_pairs_are_all_or_a_seeded_choice():
    every = choose_pairs(["b", "a"], ["y", "x"])
    assert [(p.content, p.style) for p in every] == [("a", "x"), ("a", "y"), ("b", "x"), ("b", "y")]
    some = choose_pairs("abcdef", "uvwxyz", 9, seed=1)
    assert len(set(some)) == 9
    assert some == choose_pairs("fedcba", "zyxwvu", 9, seed=1) != choose_pairs("abcdef", "uvwxyz", 9, seed=2)
    with pytest.raises(InputError, match=r"4 \(2 contents × 2 styles\); got 5"):
        choose_pairs("ab", "xy", 5)


def test_what_a_manifest_lacks_is_named(tmp_path):
    image(tmp_path / "contents" / "dog6" / "1.png")
    image(tmp_path / "styles" / "ink" / "1.png")
    found = read_dataset(tmp_path)
    lines = lacking(MANIFEST, found, found)
    assert [line.split(":")[0] for line in lines] == ["content é", "style “q”"]
