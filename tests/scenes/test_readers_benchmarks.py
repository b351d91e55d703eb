"""AMBER, the hallucination subset of MME, and HallusionBench, in the layouts of their releases."""

import json

import pytest
from chiasm.scenes.errors import UserError
from chiasm.scenes.readers import Amber, HallusionBench, Mme, PopeQuestions, open_data, recognise
from chiasm.scenes.sample import BadSample, Sample
from PIL import Image


def message(function, *arguments, **options):
    with pytest.raises(UserError) as caught:
        function(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def picture(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 6), "red").save(path)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content if isinstance(content, str) else json.dumps(content, indent=4))


@pytest.fixture
def amber(tmp_path):
    """data/annotations.json, data/query/*, image/*, as unpacked."""
    root = tmp_path / "AMBER"
    queries = [
        {"id": 1, "image": "AMBER_1.jpg", "query": "Describe this image."},
        {"id": 2, "image": "AMBER_1.jpg", "query": "Is the sky sunny in this image?"},
        {"id": 3, "image": "AMBER_2.jpg", "query": "Is there direct contact between the man and ship?"},
        {"id": 4, "image": "AMBER_2.jpg", "query": "Is there a cat in this image?"},
    ]
    annotations = [
        {"id": 1, "type": "generative", "truth": ["sky", "ship", "ship"], "hallu": ["cloud"]},
        {"id": 2, "type": "discriminative-attribute-state", "truth": "yes"},
        {"id": 3, "type": "discriminative-relation", "truth": "no"},
        {"id": 4, "type": "discriminative-hallucination", "truth": "no"},
    ]
    write(root / "data" / "annotations.json", annotations)
    for name, some in (("all", queries), ("generative", queries[:1]), ("discriminative", queries[1:])):
        write(root / "data" / "query" / f"query_{name}.json", some)
    write(root / "data" / "relation.json", {"sky": ["heaven"], "ship": ["boat"], "cloud": []})
    write(root / "data" / "safe_words.txt", "picture\n\nscene\n")
    for name in ("AMBER_1.jpg", "AMBER_2.jpg"):
        picture(root / "image" / name)
    return root


def test_amber(amber):
    for place in (amber, amber / "data"):
        assert recognise(str(place)) == "amber"
        reader = open_data(place)
        assert isinstance(reader, Amber) and len(reader) == 4
        described, state, relation, existence = reader
        assert (described.id, described.prompt, described.answer) == ("1", "Describe this image.", None)
        assert described.truth == {
            "type": "generative", "image": "AMBER_1.jpg", "truth": ["sky", "ship", "ship"], "hallu": ["cloud"],
        }  # fmt: skip
        assert described.images[0].size == (9, 6)
        assert state.truth == {"type": "discriminative-attribute-state", "image": "AMBER_1.jpg", "label": "yes"}
        assert (relation.answer, existence.truth["type"]) == ("no", "discriminative-hallucination")
    assert reader.associations() == {"sky": ["heaven"], "ship": ["boat"], "cloud": []}
    assert reader.safe_words() == ["picture", "scene"]
    assert [s.id for s in open_data(amber, part="discriminative")] == ["2", "3", "4"]
    assert open_data(amber).fingerprint() != open_data(amber, part="generative").fingerprint()


def test_amber_that_is_not_whole(amber):
    assert "part='easy' is not known, allowed are all, generative" in message(Amber, amber, part="easy")
    assert "has no 'query_discriminative-relation.json'" in message(Amber, amber, part="relation")
    write(amber / "data" / "query" / "query_all.json", [{"id": 9, "image": "AMBER_1.jpg", "query": "What?"}])
    assert "id 9 is not in 'annotations.json'" in message(open_data, amber)
    write(amber / "data" / "annotations.json", "[")
    assert "'annotations.json' of AMBER folder" in message(open_data, amber)
    assert "has no 'annotations.json'" in message(Amber, amber / "image")


@pytest.fixture(params=["beside", "folders"])
def mme(tmp_path, request):
    """Both layouts of the release."""
    root = tmp_path / "MME_Benchmark"
    for task in ("existence", "count", "position", "color"):
        texts, pictures = root / task, root / task
        if request.param == "folders":
            texts, pictures = root / task / "questions_answers_YY", root / task / "images"
        for number in (7, 12):
            said = f"Is there a thing {number} in this image? Please answer yes or no.\tYes\n"
            said += f"Is there a {task} in this image? Please answer yes or no.\tNo"
            write(texts / f"{number:06}.txt", said)
            picture(pictures / (f"{number:06}.jpg" if number == 7 else f"{number:06}.png"))
    (root / "artwork").mkdir()
    return root


def test_mme(mme):
    assert recognise(str(mme)) == "mme"
    samples = list(open_data(mme))
    assert len(samples) == 16 and all(isinstance(sample, Sample) for sample in samples)
    assert [s.id for s in samples[:3]] == ["existence/000007/1", "existence/000007/2", "existence/000012/1"]
    assert samples[0].prompt == "Is there a thing 7 in this image? Please answer yes or no."
    assert [s.answer for s in samples] == ["yes", "no"] * 8
    assert samples[-1].truth == {"label": "no", "task": "color", "image": "color/000012"}
    assert all(len(sample.images) == 1 for sample in samples)


def test_mme_that_is_not_whole(mme, tmp_path):
    file = next((mme / "count").rglob("000007.txt"))
    write(file, "Is it?\tMaybe\nIs it so?\tYes\nno tab No\n")
    items = list(open_data(mme))
    bad = [item for item in items if isinstance(item, BadSample)]
    assert [b.id for b in bad] == ["count/000007/1", "count/000007/3"]
    assert "'count/000007.txt' line 1: is 'Is it?\\tMaybe', must be a question, a tab, and Yes or No" in bad[0].reason
    next((mme / "color").rglob("000012.png")).unlink()
    bad = [item for item in open_data(mme) if isinstance(item, BadSample)]
    assert [b.id for b in bad[2:]] == ["color/000012/1", "color/000012/2"] and "does not exist" in bad[2].reason
    assert not [i for i in Mme(mme, look=False) if isinstance(i, BadSample) and i.id.startswith("color")]
    (tmp_path / "none").mkdir()
    assert "none of the folders existence, count, position, color" in message(Mme, tmp_path / "none")
    assert "is no folder" in message(Mme, tmp_path / "not")


def entry(**changes):
    whole = {
        "category": "VS", "subcategory": "chart", "visual_input": "1", "set_id": "0", "figure_id": "1", "sample_note": "gdp",
        "question_id": "2", "question": "Is the bar higher?", "gt_answer_details": "It is.", "gt_answer": "1",
        "filename": "./hallusion_bench/VS/chart/0_1.png",
    }  # fmt: skip
    return whole | changes


@pytest.fixture
def hallusion(tmp_path):
    entries = [
        entry(),
        entry(figure_id="2", visual_input="2", gt_answer="0", filename="./hallusion_bench/VS/chart/0_2.png"),
        entry(figure_id="0", visual_input="0", filename=None),
    ]
    (tmp_path / "HallusionBench.json").write_text(json.dumps(entries))  # one long line, as published
    for name in ("0_1.png", "0_2.png"):
        picture(tmp_path / "hallusion_bench" / "VS" / "chart" / name)
    return tmp_path / "HallusionBench.json"


def test_hallusion(hallusion):
    assert recognise(str(hallusion)) == "hallusion"
    reader = open_data(hallusion)
    assert isinstance(reader, HallusionBench) and len(reader) == 3
    original, edited, without = reader
    assert (original.id, original.prompt, original.answer) == ("VS_chart_0_1_2", "Is the bar higher?", "yes")
    assert original.truth == {
        "label": "yes", "category": "VS", "subcategory": "chart", "visual_input": "1", "image": "VS_chart_0_1",
        "pair": "VS_chart_0_2",
    }  # fmt: skip
    assert (edited.answer, edited.truth["pair"], len(edited.images)) == ("no", "VS_chart_0_2", 1)
    assert without.images == () and without.truth["image"] == "VS_chart_0_0"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gt_answer": "2"}, "'gt_answer' is '2', must be 0 (no) or 1 (yes)"),
        ({"visual_input": "5"}, "'visual_input' is '5', must be 0, 1 or 2"),
        ({"filename": None}, "'filename' is null"),
        ({"question": None}, "has no 'question'"),
        ({"filename": "./elsewhere.png"}, "does not exist"),
    ],
)
def test_a_bad_hallusion_entry_is_one_bad_sample(hallusion, changes, words):
    entries = json.loads(hallusion.read_text())
    hallusion.write_text(json.dumps([entries[0], entry(**changes)]))
    good, bad = open_data(hallusion)
    assert isinstance(good, Sample) and isinstance(bad, BadSample)
    assert words in bad.reason and "entry 1" in bad.reason and "\n" not in bad.reason


def test_hallusion_files_that_are_none(hallusion):
    hallusion.write_text("{}")
    assert "must be a list of questions" in message(open_data, hallusion, format="hallusion")
    hallusion.write_text("[{]")
    assert "is not JSON" in message(open_data, hallusion, format="hallusion")
    assert "is a folder, must be a file" in message(HallusionBench, hallusion.parent)


def test_pope_with_other_columns_is_one_line(tmp_path):
    write(
        tmp_path / "pope.json", '{"question_id": 1, "img": "a.jpg", "question": "Is there a dog?", "answer": "yes"}\n'
    )
    told = message(open_data, tmp_path / "pope.json")
    assert (
        "line 1" in told
        and "has no 'image', 'text', 'label', it has 'question_id', 'img', 'question', 'answer'" in told
    )


def test_questions_and_truth_without_the_pictures(amber, hallusion, tmp_path):
    """For answers that were made elsewhere; what the data are does not depend on whether the pictures are here."""
    line = {"question_id": 4, "image": "gone.jpg", "text": "Is there a dog in the image?", "label": "yes"}
    write(tmp_path / "pope.json", json.dumps(line) + "\n")
    (sample,) = PopeQuestions(tmp_path / "pope.json", look=False)
    assert sample.images == () and sample.truth["label"] == "yes"
    assert (
        PopeQuestions(tmp_path / "pope.json", look=False).fingerprint()
        == PopeQuestions(tmp_path / "pope.json").fingerprint()
    )
    for name in ("AMBER_1.jpg", "AMBER_2.jpg"):
        (amber / "image" / name).unlink()
    assert [s.images for s in Amber(amber, look=False)] == [()] * 4
    assert [s.images for s in HallusionBench(hallusion, look=False)] == [()] * 3
    assert next(iter(open_data(tmp_path / "pope.json", look=False))) == sample
