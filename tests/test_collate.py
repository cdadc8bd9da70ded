"""Which tokens are labels, token by token, in all families."""

import datetime

import pytest
import torch
from conftest import PICTURE_TOKENS, picture_cell, sample

from utils.collate import IGNORE, Chat, Collator
from utils.families import FAMILIES
from utils.loop.batches import by_modality

END = {"llava": "</s>", "qwen2_vl": "<|im_end|>", "mllama": "<|eot_id|>"}
ANSWERS = [
    "Paris",
    "The River of Light",
    "42",
    "7.",
    "1,000 km (approx.)",
    "Zoë naïve — 你好",
    "yes!",
    '"Quoted"',
    "A",
    "Paris?\nRome.",
]


@pytest.fixture
def chat_family(family, processors):
    return family, processors[family], FAMILIES[family]


def rows(with_picture: bool):
    sizes = [(32, 32), (48, 32), (32, 96), (64, 64)]
    return [
        sample(
            "Who is this, Paris or Rome? " + "very " * k + "A 42?",
            answer,
            picture_cell(*sizes[k % 4]) if with_picture else None,
            f"t/{k}/0",
        )
        for k, answer in enumerate(ANSWERS)
    ]


def text_of(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)


@pytest.mark.parametrize("with_picture", [True, False])
def test_labels_are_the_answer_and_its_end_of_turn(chat_family, with_picture):
    name, processor, family = chat_family
    samples = rows(with_picture)
    batch = Collator(processor, family)(samples)
    lengths = batch.inputs["attention_mask"].sum(1)
    assert len(set(lengths.tolist())) > 3, "the rows should have unequal lengths"
    for k, s in enumerate(samples):
        ids, labels = batch.inputs["input_ids"][k], batch.labels[k]
        labelled = labels != IGNORE
        assert text_of(processor.tokenizer, labels[labelled]).strip() == s.answer + END[name]
        assert torch.equal(labels[labelled], ids[labelled])
        first = processor.tokenizer.convert_ids_to_tokens(labels[labelled].tolist())[0]
        assert first.strip("▁Ġ "), "a blank alone between prompt and answer is the prompt's"
        start, stop = labelled.nonzero()[0].item(), labelled.nonzero()[-1].item() + 1
        assert labelled[start:stop].all() and stop == lengths[k]
        before = text_of(processor.tokenizer, ids[:start])
        assert before.rstrip().endswith(Chat(processor).prompt("x", 0).rstrip().split("x")[-1].strip())
    assert batch.ids == [s.id for s in samples]


@pytest.mark.parametrize("with_picture", [True, False])
def test_all_text_tokens_without_ans_only(chat_family, with_picture):
    name, processor, family = chat_family
    samples = rows(with_picture)
    batch = Collator(processor, family, ans_only=False)(samples)
    ids, here = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    pictures = processor.tokenizer.convert_tokens_to_ids(PICTURE_TOKENS[name])
    expected = here & ~torch.isin(ids, torch.tensor(pictures))
    assert torch.equal(batch.labels != IGNORE, expected)
    assert torch.equal(batch.labels[expected], ids[expected])
    assert torch.isin(ids, torch.tensor(pictures)).any() == with_picture
    for k, s in enumerate(samples):
        text = text_of(processor.tokenizer, batch.labels[k][expected[k]])
        assert s.question in text and s.answer in text


def test_end_of_turn_can_be_left_out(chat_family):
    _, processor, family = chat_family
    batch = Collator(processor, family, end_of_turn=False)(rows(False))
    for labels, answer in zip(batch.labels, ANSWERS):
        assert text_of(processor.tokenizer, labels[labels != IGNORE]).strip() == answer


def test_a_row_is_the_same_alone_and_in_a_batch(chat_family):
    _, processor, family = chat_family
    samples, collate = rows(True), Collator(processor, family)
    together = collate(samples)
    for k, s in enumerate(samples):
        alone = collate([s])
        n = alone.labels.shape[1]
        assert torch.equal(together.inputs["input_ids"][k, :n], alone.inputs["input_ids"][0])
        assert torch.equal(together.labels[k, :n], alone.labels[0])
        assert (together.labels[k, n:] == IGNORE).all()


def test_blanks_around_an_answer_change_nothing(chat_family):
    _, processor, family = chat_family
    collate = Collator(processor, family)
    plain, blank = collate([sample(answer="Oslo")]), collate([sample(answer=" Oslo \n")])
    assert torch.equal(plain.labels, blank.labels)


@pytest.mark.parametrize("with_picture", [True, False])
def test_bos_is_there_once_where_the_family_has_one(chat_family, with_picture):
    name, processor, family = chat_family
    batch = Collator(processor, family)(rows(with_picture))
    bos = processor.tokenizer.bos_token_id
    found = (batch.inputs["input_ids"] == bos).sum(1) if bos is not None else torch.zeros(len(ANSWERS))
    assert found.tolist() == [0 if name == "qwen2_vl" else 1] * len(ANSWERS)


def test_solved_examples_come_first_with_their_pictures(chat_family):
    name, processor, _ = chat_family
    prompt = Chat(processor).prompt("second?", 1, [("first?", 1, "one")])
    token = PICTURE_TOKENS[name][0]
    assert prompt.count(token) == 2
    places = [prompt.index(token), prompt.index("first?"), prompt.index("one"), prompt.index("second?")]
    assert places == sorted(places)
    assert prompt.rstrip().endswith(Chat(processor).prompt("x", 0).rstrip().split("x")[-1].strip())


def test_a_prompt_does_not_change_with_the_day(processors):
    """Llama-3.2's own template writes the date of today into text-only prompts."""
    import copy

    processor = copy.deepcopy(processors["mllama"])
    head, rest = processor.chat_template.split("{{- bos_token -}}")
    dated = """{%- if not date_string is defined -%}
{%- set date_string = strftime_now("%d %b %Y") -%}{%- endif -%}
{{- bos_token -}}{{- "Today Date: " + date_string + "\\n\\n" -}}"""
    processor.chat_template = head + dated + rest
    prompt = Chat(processor).prompt("q", 0)
    assert "Today Date: " in prompt
    assert datetime.date.today().strftime("%d %b %Y") not in prompt


def test_by_modality_keeps_order():
    with_one, without = sample(picture=picture_cell(), id="a"), sample(id="b")
    other = sample(picture=picture_cell(), id="c")
    assert by_modality([with_one, without, other]) == [[with_one, other], [without]]
    assert by_modality([without]) == [[without]]


def test_a_tokenizer_that_appends_a_token_is_refused(processors):
    """Its </s> would count as the answer's, and push the first token of the answer out of the labels."""
    import copy

    from tokenizers.processors import TemplateProcessing

    processor = copy.copy(processors["llava"])
    processor.tokenizer = copy.deepcopy(processor.tokenizer)
    eos = processor.tokenizer.eos_token
    processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"$A {eos}", special_tokens=[(eos, processor.tokenizer.eos_token_id)]
    )
    with pytest.raises(ValueError, match="appends a token to every text"):
        Chat(processor)
