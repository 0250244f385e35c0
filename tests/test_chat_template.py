"""`prompt.template=chat`: the tokens of training, evaluation, ask and export are those of the tokenizer's chat template."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import AutoProcessor, AutoTokenizer, LlamaForCausalLM, LlavaForConditionalGeneration, PreTrainedTokenizerFast

from data_prep.phantom.weights.language import train_tokenizer
from src.data import datamodule
from src.data.chat_prompt import CAPTION_REQUEST, ChatPrompter
from src.data.chat_template import DATE
from src.data.prompt import IGNORE, IMAGE, SYSTEM_NOTE
from src.data.record import Record
from src.evaluate import evaluate
from src.inference.query import Sampling, VQAQuery
from src.inference.vqa_model import load_vqa_model
from src.model.generate import make_request
from src.model.vlm import build_vlm
from src.release.llava import add_no_special_tokens
from src.runtime.errors import UserError
from src.runtime.run_folder import open_run
from src.runtime.schema import to_plain
from src.train import train
from tests.fixtures import ORGANS, SENTENCES, overrides, parts
from tests.runs import finish, randomise_adapters
from tests.test_evaluate import config as evaluate_config
from tests.test_export import BLOCKS, load_model, random_image, run_code_of_card, run_export
from tests.test_generate import MAX_NEW_TOKENS, generator, greedy

PATCHES = 4
# {% generation %} marks what is supervised; the prompter does not need it.
CHATML = (
    "{% for message in messages %}"
    "{% if loop.first and message.role != 'system' %}<|im_start|>system\nYou help.<|im_end|>\n{% endif %}"
    "{{ '<|im_start|>' + message.role + '\n' }}"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message.content + '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA_2 = (
    "{% if messages[0].role == 'system' %}{% set turns = messages[1:] %}"
    "{% set system = '<<SYS>>\n' + messages[0].content + '\n<</SYS>>\n\n' %}"
    "{% else %}{% set turns = messages %}{% set system = '' %}{% endif %}"
    "{% for message in turns %}{% if message.role == 'user' %}"
    "{{ bos_token + '[INST] ' + ((system if loop.first else '') + message.content).strip() + ' [/INST]' }}"
    "{% else %}{% generation %}{{ ' ' + message.content.strip() + ' ' + eos_token }}{% endgeneration %}{% endif %}{% endfor %}"
)
LAST_TURN_ONLY = CHATML.replace("in messages", "in messages[-2:]")
NO_SYSTEM = CHATML.replace("{% for message in messages", "{% for message in messages if message.role != 'system'")
RAISES_FOR_SYSTEM = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + CHATML
THINKS = CHATML.replace(
    "{{ message.content + '<|im_end|>' }}{% endgen", "{{ ('t\n' if loop.last else '') + message.content + '<|im_end|>' }}{% endgen"
)

SYSTEM = {"system": "You are a radiologist."}
RECORDS = {
    "one turn": Record("k", "s", "train", turns=[("which organ is shown?", "the lung")]),
    "two turns": Record("k", "s", "train", turns=[("which organ?", "lung"), ("is it healthy?", "yes, it is")]),
    "system": Record("k", "s", "train", turns=[("which organ?", "lung"), ("sure?", "yes")], meta=SYSTEM),
    "caption": Record("k", "s", "train", caption="a chest x-ray"),
    "options": Record("k", "s", "train", turns=[("which?", "A")], choices=["lung", "liver"]),
    "whitespace": Record("k", "s", "train", turns=[("  which\n\norgan? ", "\n the lung\n")]),
    "empty answer": Record("k", "s", "train", turns=[("which organ?", "")]),
}


def tokenizer_with(template: str, kind: str = "bytes", folder: Path | None = None, **settings) -> PreTrainedTokenizerFast:
    """A tokenizer of bytes or of marked words with the special tokens of ChatML and a chat template."""
    tokenizer = AutoTokenizer.from_pretrained(folder) if kind == "bytes" else train_tokenizer(SENTENCES * 3)
    for name, value in settings.items():
        setattr(tokenizer, name, value)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    tokenizer.chat_template = template
    return tokenizer


def prompter(tokenizer, budget: int = 400) -> ChatPrompter:
    tokenizer.add_tokens([IMAGE], special_tokens=True)
    return ChatPrompter(tokenizer, patches=PATCHES, budget=budget)


def messages(record: Record, num_images: int) -> list[dict]:
    options = "".join(f"\n{letter}: {choice}" for letter, choice in zip("ABC", record.choices, strict=False))
    result = [{"role": "system", "content": record.meta["system"]}] if record.meta else []
    for number, (question, answer) in enumerate(record.turns or [(CAPTION_REQUEST, record.caption)]):
        images = "" if number or not num_images else IMAGE * num_images + "\n"
        result.append({"role": "user", "content": images + question.strip() + options})
        result.append({"role": "assistant", "content": answer.strip()})
    return result


def expanded(tokenizer, values: list[int], ids: list[int]) -> list[int]:
    """`values` of the tokens `ids`, repeated for each patch of an image."""
    image = tokenizer.convert_tokens_to_ids(IMAGE)
    return [value for value, token in zip(values, ids, strict=True) for _ in range(PATCHES if token == image else 1)]


@pytest.mark.parametrize("num_images", [0, 2])
@pytest.mark.parametrize("name", RECORDS)
@pytest.mark.parametrize("kind", ["bytes", "words"])
@pytest.mark.parametrize("template", [CHATML, LLAMA_2], ids=["chatml", "llama_2"])
def test_ids_and_labels_equal_apply_chat_template(language, template, kind, name, num_images):
    tokenizer, record = tokenizer_with(template, kind, language), RECORDS[name]
    ours = prompter(tokenizer)
    (sample,) = ours.encode([record], num_images=[num_images])
    theirs = tokenizer.apply_chat_template(messages(record, num_images), tokenize=True, return_dict=True, return_assistant_tokens_mask=True)
    ids, mask = theirs["input_ids"], theirs["assistant_masks"]
    assert sample.ids.tolist() == expanded(tokenizer, ids, ids)
    labels = [token if supervised else IGNORE for token, supervised in zip(ids, mask, strict=True)]
    assert sample.labels.tolist() == expanded(tokenizer, labels, ids)
    assert (sample.num_images, sample.num_truncated, sample.ids.dtype, sample.labels.dtype) == (num_images, 0, np.int32, np.int32)


@pytest.mark.parametrize("num_images", [0, 1])
@pytest.mark.parametrize("template", [CHATML, LLAMA_2], ids=["chatml", "llama_2"])
def test_question_has_the_tokens_of_the_generation_prompt_and_of_training(language, template, num_images):
    tokenizer = tokenizer_with(template, "bytes", language)
    ours = prompter(tokenizer)
    for record in RECORDS.values():
        prefix, prompt = ours.question_ids(record, num_images, max_new_tokens=9)
        ids = tokenizer.apply_chat_template(messages(record, num_images)[:-1], add_generation_prompt=True, return_dict=False)
        assert prefix + prompt == expanded(tokenizer, ids, ids)
        assert prefix.count(ours.image_id) == num_images * PATCHES
        assert prefix
        assert prompt
        assert prefix == ours.prefix(num_images) or record.meta or not num_images  # "[INST] " may join with the question
        (sample,) = ours.encode([record], num_images=[num_images])
        assert sample.ids[: len(prefix + prompt)].tolist() == prefix + prompt
        (answer,) = ours.answer_ids([record.answer])
        assert sample.labels[len(prefix + prompt) :][: len(answer)].tolist() == answer
        assert answer[-1] in ours.ends
        assert len(prefix + prompt) == len(ours.prefix(num_images)) + ours.num_text_tokens(record, num_images) - 1


def test_tokenizer_without_bos_token_has_none_in_its_prompts(language):
    tokenizer = tokenizer_with(CHATML, "bytes", language, bos_token=None)
    (sample,) = prompter(tokenizer).encode([RECORDS["one turn"]], num_images=[1])
    text = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\n" + IMAGE * PATCHES + "\nwhich organ is shown?<|im_end|>\n"
    assert tokenizer.decode(sample.ids) == text + "<|im_start|>assistant\nthe lung<|im_end|>\n"
    assert tokenizer.decode(sample.labels[sample.labels != IGNORE]) == "the lung<|im_end|>"


def test_special_tokens_in_a_text_are_plain_characters(language):
    tokenizer = tokenizer_with(CHATML, "bytes", language)
    texts = ("<image>\nis <|im_end|> \U000f0000 or \U000f0001 an end?", "no <|im_end|><|im_start|>user\n</s> one")
    record = Record("k", "s", "train", turns=[texts, ("sure?", "yes")], meta={"system": "<|im_end|>"})
    ours = prompter(tokenizer)
    (sample,) = ours.encode([record], num_images=[1])
    assert [(sample.ids == tokenizer.convert_tokens_to_ids(token)).sum() for token in (IMAGE, "<|im_end|>", "</s>")] == [PATCHES, 5, 0]
    assert tokenizer.decode(sample.labels[sample.labels != IGNORE]) == f"{texts[1]}<|im_end|>yes<|im_end|>"
    for text in (texts[0], "<|im_start|>", texts[1]):
        record = Record("k", "s", "train", turns=[(text.replace("\U000f0000", "").replace("\U000f0001", ""), "a </s>")])
        (sample,) = ours.encode([record], num_images=[0])
        assert sample.ids.tolist() == tokenizer.apply_chat_template(messages(record, 0), return_dict=False, sanitize_control_tokens=True)


def test_batched_encoding_equals_single_encoding(language):
    ours = prompter(tokenizer_with(LLAMA_2, "bytes", language))
    records = [*RECORDS.values(), Record("k", "s", "train", turns=[("a </s> b", "<s>")])]
    for record, sample in zip(records, ours.encode(records, num_images=[1] * len(records)), strict=True):
        (single,) = ours.encode([record], num_images=[1])
        assert np.array_equal(single.ids, sample.ids)
        assert np.array_equal(single.labels, sample.labels)
    assert ours.encode([], num_images=[]) == []


@pytest.mark.parametrize("template", [CHATML, LLAMA_2], ids=["chatml", "llama_2"])
def test_long_conversation_loses_whole_turns_then_its_answer_then_its_question(language, template):
    tokenizer = tokenizer_with(template, "bytes", language)
    ours = prompter(tokenizer)

    def encoded(budget, *turns, meta=None):
        record = Record("k", "s", "train", turns=list(turns), meta=meta or {})
        return prompter(tokenizer, budget).encode([record], num_images=[2])[0]

    def length(*turns):
        return len(encoded(9999, *turns).ids)

    first, second = ("which organ?", "the lung"), ("is it healthy?", "yes " * 20)
    short = encoded(length(first), first, second)
    assert np.array_equal(short.ids, encoded(9999, first).ids)
    assert short.num_truncated == length(first, second) - length(first)

    long = encoded(120, (first[0], "the lung " * 80))
    assert len(long.ids) == 120
    assert long.num_truncated == length((first[0], "the lung " * 80)) - 120
    answer = tokenizer.decode(long.labels[long.labels != IGNORE]).strip()
    assert answer.startswith("the lung the lung")
    assert long.labels[long.labels != IGNORE][-1] in ours.ends
    assert first[0] in tokenizer.decode(long.ids)

    cut = encoded(120, ("which " * 90 + "organ?", "the lung " * 80), meta={"system": "word " * 200})
    text = tokenizer.decode(cut.ids)
    assert len(cut.ids) == 120
    assert (cut.ids == ours.image_id).sum() == 2 * PATCHES
    assert "word" not in text
    head, tail = tokenizer.decode(ours.prefix(2)), text[-60:]
    assert text.startswith(head)
    assert "which organ?" in text
    assert "the lung" in tail
    with pytest.raises(
        UserError, match=r"record 'k': 2 image\(s\) of 4 tokens and 8 tokens of text do not fit into max_seq_len=20; set it"
    ):
        encoded(20, first)


def test_long_history_loses_its_oldest_turns_then_the_question_its_beginning(language):
    tokenizer = tokenizer_with(CHATML, "bytes", language)
    turns = [(f"turn {n}?", f"answer {n}") for n in range(9)]
    record = Record("k", "s", "test", turns=[*turns, ("and now?", "")], meta=SYSTEM)
    ours = prompter(tokenizer, 200)
    prefix, prompt = ours.question_ids(record, 1, max_new_tokens=20)
    text = tokenizer.decode(prefix + prompt)
    assert len(prefix + prompt) + 21 <= 200
    assert text.startswith("<|im_start|>system\nYou are a radiologist.<|im_end|>\n<|im_start|>user\n<image><image><image><image>\nturn ")
    assert text.endswith("answer 8<|im_end|>\n<|im_start|>user\nand now?<|im_end|>\n<|im_start|>assistant\n")
    assert "turn 0" not in text
    long = Record("k", "s", "test", turns=[*turns, ("which " * 200 + "organ?", "")])
    prefix, prompt = ours.question_ids(long, 1, max_new_tokens=20)
    assert prefix == ours.prefix(1)
    assert len(prefix + prompt) + 21 == 200
    assert tokenizer.decode(prompt).endswith("which which organ?<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "is missing; set prompt.template=plain, or give an instruction-tuned model"),
        (LAST_TURN_ONLY, "drops or changes question 1, answer 1; set prompt.template=plain, or give a model with another template"),
        (CHATML.replace("in messages", "in messages if message.role == 'user'"), "drops or changes answer 1, answer 2;"),
        (CHATML.replace("in messages", "in messages | reverse"), "reorders the turns"),
        (CHATML.replace("message.content", "message.content | upper"), "drops or changes question 1, answer 1, question 2, answer 2;"),
        (THINKS, "writes 't' before an answer, which a generation prompt does not"),
        (CHATML.replace("'<|im_end|>' }}{% endgen", "'.' }}{% endgen"), "writes no special token after an answer"),
        (CHATML.replace("loop.first and", "messages | length > 2 and loop.first and"), "writes an earlier turn differently"),
        (CHATML.replace("You help.", "{{ strftime_now('%Y') }}"), "writes today's date"),
        (CHATML + "{{ raise_exception('not\nthis') }}", "rejects a conversation of user (not);"),
        ("{{ messages[0].content + 1 }}", "rejects a conversation of user"),
    ],
)
def test_unusable_template_is_refused_by_name(language, template, message):
    tokenizer = tokenizer_with(template, "bytes", language)
    with pytest.raises(UserError) as error:
        prompter(tokenizer)
    assert str(error.value).startswith(f"prompt.template=chat: the chat template of {language} ")
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("template", "message"), [(NO_SYSTEM, "drops or changes the system text"), (RAISES_FOR_SYSTEM, "of system, user (no system role)")]
)
def test_template_without_system_role_is_refused_for_data_with_system_texts(configure, language, tmp_path, monkeypatch, template, message):
    folder = instruct_model(language, tmp_path / "model", template)
    ours = prompter(AutoTokenizer.from_pretrained(folder))
    assert ours.encode([RECORDS["two turns"]], num_images=[0])
    with pytest.raises(UserError, match=re.escape(message)):
        ours.encode([RECORDS["system"]], num_images=[0])
    config = configure(f"language.path={folder}", "prompt.template=chat")
    opened = parts(config)[1].shards
    opened["gamma"].manifest["notes"] = {SYSTEM_NOTE: 1}
    monkeypatch.setattr(datamodule, "open_sources", lambda *_, **__: opened)
    with pytest.raises(UserError, match=re.escape(message)):
        parts(config)


def test_date_of_a_template_is_constant(language):
    tokenizer = tokenizer_with("{{ date_string }}\n" + CHATML + "{# strftime_now #}", "bytes", language)
    (sample,) = prompter(tokenizer).encode([RECORDS["one turn"]], num_images=[0])
    assert tokenizer.decode(sample.ids).startswith(f"{DATE}\n<|im_start|>")


def instruct_model(language: Path, folder: Path, template: str) -> Path:
    """The language model of the tests with the special tokens of ChatML and a chat template."""
    tokenizer, model = tokenizer_with(template, "bytes", language), LlamaForCausalLM.from_pretrained(language)
    torch.manual_seed(0)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.get_output_embeddings().weight.data[-2:].normal_(0, 0.3)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=[CHATML, LLAMA_2], ids=["chatml", "llama_2"])
def model_folder(request, language, tmp_path_factory) -> Path:
    return instruct_model(language, tmp_path_factory.mktemp("instruct") / "model", request.param)


@pytest.fixture(scope="module")
def exported(shards, model_folder, tmp_path_factory):
    """(run folder, export folder, the trained model)."""
    words = overrides(shards, model_folder, tmp_path_factory.mktemp("runs"))
    folder, _ = finish(words, "prompt.template=chat", BLOCKS, "data.max_seq_len=256")
    return folder, run_export(folder, folder.parent / "out"), load_model(folder)


@pytest.mark.slow
def test_run_trains_and_evaluates_with_the_chat_template(configure, model_folder):
    words = [f"language.path={model_folder}", "data.max_seq_len=256", "optim.steps=2", "optim.warmup=0"]
    config = configure(*words, "prompt.template=chat")
    folder = train(config)
    open_run(folder, to_plain(config))
    with pytest.raises(UserError, match=r"prompt\.template was 'chat', now 'plain'"):
        open_run(folder, to_plain(configure(*words)))
    evaluate(evaluate_config(folder, "images=[real,blank,none]", "max_new_tokens=4"))
    assert len((folder / "predictions" / "alpha.real.jsonl").read_text().splitlines()) == 8


def test_batches_of_training_have_the_chat_template(configure, model_folder):
    model, data = parts(configure(f"language.path={model_folder}", "prompt.template=chat", "data.max_seq_len=256"))
    batch = data.stream().batch(0, micro_batch=0)
    tokenizer = model.language.tokenizer
    texts = [
        tokenizer.decode(batch.input_ids_BT.flatten()[begin:end])
        for begin, end in zip(batch.cu_seqlens, batch.cu_seqlens[1:], strict=False)
    ]
    assert sum("assistant\n" in text or "[/INST]" in text for text in texts) == sum(map(len, data.stream().step_sequences(0)))
    losses_S, _ = model(batch)
    assert len(losses_S) == len(batch.loss_index_S)
    assert losses_S.isfinite().all()


@pytest.mark.slow
def test_batched_answers_match_unbatched_greedy_decoding(configure, model_folder):
    """With and without images and system texts, which stand before the images and make prefixes of other lengths."""
    model = build_vlm(configure(f"language.path={model_folder}", "prompt.template=chat")).eval().double()
    torch.manual_seed(1)
    with torch.no_grad():
        model.projector.linear_2.weight.normal_(0, 2.0)
    randomise_adapters(model.language)
    rng, prompts = np.random.default_rng(0), model.prompter(budget=160)
    pictures = [torch.from_numpy(rng.integers(0, 256, (3, 32, 32), np.uint8)) for _ in range(3)]
    requests = []
    for images, prefix in [([pictures[0]], "0"), ([pictures[1]], "1"), ([], ""), (pictures[1:], "pair")]:
        for system in ("", "", "Be brief.", "You are a radiologist."):
            question = " ".join(rng.choice(ORGANS, rng.integers(1, 9)))
            record = Record("k", "s", "test", turns=[("what?", "lung"), (question, "")], meta={"system": system} if system else {})
            requests.append(make_request(record, images=images, prefix=prefix, prompter=prompts, max_new_tokens=MAX_NEW_TOKENS))
    reference = [greedy(model, request) for request in requests]
    assert len({tuple(tokens) for tokens in reference}) > 6
    tokens = model.language.tokenizer
    expected = [tokens.decode([t for t in answer if t not in prompts.ends], skip_special_tokens=True).strip() for answer in reference]
    for batch in (64, 3):
        answers = dict(generator(model, batch=batch).answers(requests))
        assert [answers[n].text for n in range(len(requests))] == expected


@pytest.mark.parametrize("token", ["<|im_end|>", "</s>"])
def test_answer_ends_with_the_end_of_turn_or_the_end_of_sequence(configure, language, tmp_path, token):
    folder = instruct_model(language, tmp_path / "model", CHATML)
    model = build_vlm(configure(f"language.path={folder}", "prompt.template=chat")).eval()
    answering = generator(model)
    end = model.language.tokenizer.convert_tokens_to_ids(token)
    assert answering._answer([40, 41, end], [0.0] * 3).truncated is False
    with torch.no_grad():
        model.language.head.weight.zero_()[end] = 1
        model.language.body.norm.weight.fill_(0)
    record = Record("k", "s", "test", turns=[("what?", "")])
    request = make_request(record, images=[], prefix="", prompter=answering.prompter, max_new_tokens=MAX_NEW_TOKENS)
    answering._choose = lambda logprobs, _: torch.tensor([end])
    ((_, answer),) = answering.answers([request])
    assert (answer.text, answer.truncated) == ("", False)


@pytest.mark.slow
def test_history_of_a_query_is_in_the_template(exported):
    folder, _, _ = exported
    model = load_vqa_model(str(folder), accelerator="cpu")
    tokenizer = model.model.language.tokenizer
    query = VQAQuery("and now?", [random_image(0)], history=[("which organ?", "lung"), ("sure?", "yes")])
    request = model.prepare(query, Sampling(8))
    record = Record("k", "s", "test", turns=[*query.history, (query.question, "")])
    ids = tokenizer.apply_chat_template(messages(record, 1)[:-1], add_generation_prompt=True, return_dict=False)
    image = ids.index(model.model.image_id)
    patches = [model.model.image_id] * model.prompter.patches
    assert request.prefix_ids + request.prompt == ids[:image] + patches + ids[image + 1 :]
    assert model.answers([query], Sampling(8))[0].confidence < 0
    long = VQAQuery("and now?", history=[(f"turn {n} {'long ' * 5}?", f"answer {n}") for n in range(12)])
    text = tokenizer.decode(model.prepare(long, Sampling(8)).prompt)
    assert "answer 11" in text
    assert "turn 0" not in text
    with pytest.raises(UserError, match=r"the question has \d+ tokens, but 0 images"):
        model.prepare(VQAQuery("long " * 300), Sampling(8))


def test_exported_processor_has_the_tokens_and_answers_of_the_run(exported):
    _, out, trained = exported
    processor = AutoProcessor.from_pretrained(out / "hf", backend="pil")
    llava = LlavaForConditionalGeneration.from_pretrained(out / "hf").eval()
    reloaded = load_vqa_model(str(out), accelerator="cpu")
    history = [("which organ is shown?", "lung")]
    for turns in ([], history):
        query, sampling = VQAQuery("is it healthy?", [random_image(1)], history=turns), Sampling(12)
        request = trained.prepare(query, sampling)
        contents = [text for pair in turns for text in pair] + [query.question]
        chat = [{"role": ("user", "assistant")[n % 2], "content": [{"type": "text", "text": text}]} for n, text in enumerate(contents)]
        chat[0]["content"].insert(0, {"type": "image", "image": query.images[0]})
        inputs = processor.apply_chat_template(chat, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt")
        assert inputs["input_ids"][0].tolist() == request.prefix_ids + request.prompt
        texts = [{"role": message["role"], "content": content} for message, content in zip(chat, contents, strict=True)]
        texts[0]["content"] = f"<image>\n{contents[0]}"
        text = processor.tokenizer.apply_chat_template(texts, add_generation_prompt=True, tokenize=False)
        assert list(processor(text=text, images=query.images).input_ids[0]) == request.prefix_ids + request.prompt
        assert reloaded.prepare(query, sampling).prompt == request.prompt
        answer = trained.answers([query], sampling)[0]
        generated = llava.generate(**inputs, max_new_tokens=12)[0, inputs["input_ids"].shape[1] :]
        assert processor.decode(generated, skip_special_tokens=True).strip() == answer.text
        theirs = reloaded.answers([query], sampling)[0]
        assert (theirs.text, theirs.confidence) == (answer.text, pytest.approx(answer.confidence, abs=1e-3))
    assert set(trained.prompter.ends) == set(reloaded.prompter.ends) == set(np.atleast_1d(llava.generation_config.eos_token_id).tolist())


@pytest.mark.slow
@pytest.mark.parametrize("part", ["hf", "adapter"])
def test_code_of_a_card_runs(exported, part, tmp_path, monkeypatch, capsys):
    _, out, trained = exported
    run_code_of_card(out / part, tmp_path, monkeypatch)
    query = VQAQuery("Which organ is shown?", [random_image(5)]) if part == "hf" else VQAQuery("Is aspirin a drug?")
    assert capsys.readouterr().out.strip() == trained.answers([query], Sampling(64))[0].text


@pytest.mark.slow
def test_plain_export_of_a_model_with_a_chat_template_has_the_plain_prompt(shards, model_folder, tmp_path):
    folder, _ = finish(overrides(shards, model_folder, tmp_path), BLOCKS)
    out, trained = run_export(folder, tmp_path / "out", "parts=[hf,adapter]"), load_model(folder)
    request = trained.prepare(VQAQuery("which organ is shown?"), Sampling(8))
    for part in ("hf", "adapter"):
        tokenizer = AutoTokenizer.from_pretrained(out / part)
        ids = tokenizer.apply_chat_template([{"role": "user", "content": "which organ is shown?"}], return_dict=False)
        assert ids == request.prefix_ids + request.prompt


def test_exported_tokenizer_adds_no_bos_that_the_template_lacks(language, tmp_path):
    """A processor adds special tokens unless the text begins with bos."""
    tokenizer = tokenizer_with(CHATML, "bytes", language)
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    without = tokenizer("lung", add_special_tokens=False).input_ids
    assert tokenizer("lung").input_ids == [1, *without]
    add_no_special_tokens(tokenizer)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer("lung").input_ids == AutoTokenizer.from_pretrained(tmp_path)("lung").input_ids == without
