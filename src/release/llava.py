"""Export of a trained VLM as `LlavaForConditionalGeneration` with a processor, with a check that both compute the same logits."""

import copy
import re
from pathlib import Path

import torch
from tokenizers import processors
from torch import Tensor
from transformers import (
    CLIPImageProcessorPil,
    GenerationConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerBase,
)
from transformers.initialization import no_init_weights

from src.data.chat_prompt import ChatPrompter
from src.data.chat_template import DATE
from src.data.prompt import IMAGE, Prompter
from src.data.record import Record
from src.model.projector import Projector
from src.model.vlm import VLM
from src.release.tower import tower_config, tower_state
from src.runtime.errors import UserError

MAX_NEW_TOKENS = 64
QUESTION = Record(key="check", source="check", split="test", turns=[("Which organ is shown in this image?", "")])


def save_llava(model: VLM, folder: Path, *, dtype: torch.dtype, prompter: Prompter) -> None:
    """Writes weights (safetensors, LoRA merged in float32), processor, tokenizer, chat template and generation config."""
    llava = to_llava(model, dtype=dtype)
    llava.save_pretrained(folder)
    generation_config(model, prompter).save_pretrained(folder)
    processor(model, prompter).save_pretrained(folder)


def to_llava(model: VLM, *, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """Builds the transformers model that computes the same as `model`."""
    language = merged_state(model)
    text = copy.deepcopy(model.language.base.config)
    text.use_cache, text.dtype, text._name_or_path = True, dtype, ""
    config = LlavaConfig(
        vision_config=tower_config(model.vision),
        text_config=text,
        image_token_index=model.image_id,
        image_seq_length=model.vision.num_patches,
        projector_hidden_act="linear" if model.projector.linear_2 is None else "gelu",
        vision_feature_select_strategy=select_strategy(model),
        vision_feature_layer=-1,  # after the last block, before the final norm
        multimodal_projector_bias=True,
        tie_word_embeddings=text.tie_word_embeddings,
        dtype=dtype,
    )
    if model.template != "plain":
        config.prompt_template = model.template  # for src/inference/exported.py
    with no_init_weights():
        llava = LlavaForConditionalGeneration(config)
    state = {f"model.vision_tower.{name}": value for name, value in tower_state(model.vision).items()}
    state |= {f"model.multi_modal_projector.{name}": value for name, value in projector_state(model.projector, text.hidden_size).items()}
    for name, value in language.items():
        state[f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name] = value
    llava.load_state_dict(state, strict=True)
    return llava.to(dtype).eval()


def select_strategy(model: VLM) -> str:
    """Llava drops the first token of an encoder with a CLS token ("default") and none of another ("full")."""
    return "default" if model.vision.has_cls else "full"


def merged_state(model: VLM) -> dict[str, Tensor]:
    """State dict of the language model with every adapter merged into its weight. Merging is done in float32 for any dtype of the base."""
    base = model.language.base
    state = {name.replace(".base_layer.", "."): value for name, value in base.state_dict().items() if ".lora_" not in name}
    for name, module in base.named_modules():
        if hasattr(module, "lora_A"):
            state[f"{name}.weight"] = module.base_layer.weight.float() + module.get_delta_weight("default").float()
    return state


def projector_state(projector: Projector, hidden: int) -> dict[str, Tensor]:
    """State dict of Llava's projector, which has two layers of the language model's width.

    A narrower hidden layer is padded with zeros; a single linear layer is followed by the identity. Both are exact. Raises `UserError` for
    a wider hidden layer.
    """
    first = projector.linear_1
    if projector.linear_2 is None:
        identity_HH, zeros_H = torch.eye(hidden), torch.zeros(hidden)
        return {"linear_1.weight": first.weight, "linear_1.bias": first.bias, "linear_2.weight": identity_HH, "linear_2.bias": zeros_H}
    padding = hidden - first.out_features
    if padding < 0:
        raise UserError(
            f"projector.hidden={first.out_features}: the Llava of transformers has a projector of at most the language model's width "
            f"{hidden}; leave out the parts hf and space with parts=[adapter,timm]"
        )
    return {
        "linear_1.weight": torch.nn.functional.pad(first.weight, (0, 0, 0, padding)),
        "linear_1.bias": torch.nn.functional.pad(first.bias, (0, padding)),
        "linear_2.weight": torch.nn.functional.pad(projector.linear_2.weight, (0, padding)),
        "linear_2.bias": projector.linear_2.bias,
    }


def generation_config(model: VLM, prompter: Prompter) -> GenerationConfig:
    """Greedy decoding that suppresses the image token and the padding rows of the embedding."""
    language = model.language
    padding_ids = range(len(language.tokenizer), language.base.config.vocab_size)
    return GenerationConfig(
        bos_token_id=prompter.bos,
        eos_token_id=prompter.ends if len(prompter.ends) > 1 else prompter.eos,
        pad_token_id=language.tokenizer.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        suppress_tokens=[model.image_id, *padding_ids],
    )


def processor(model: VLM, prompter: Prompter) -> LlavaProcessor:
    """Processor that resizes images as in training, puts P placeholders per image first, and applies our prompt.

    `from_pretrained(..., backend="pil")` gives exactly the pixels of training. The default backend of transformers resizes with
    torchvision, whose bicubic filter differs by up to one grey level.
    """
    vision = model.vision
    side = {"height": vision.size, "width": vision.size}
    images = CLIPImageProcessorPil(
        size=side,
        crop_size=side,  # no effect, but transformers reads it to count the tokens of an image
        do_center_crop=False,
        image_mean=vision.mean.flatten().tolist(),
        image_std=vision.std.flatten().tolist(),
    )
    tokenizer = copy.deepcopy(model.language.tokenizer)
    tokenizer.model_max_length = prompter.budget
    tokenizer.chat_template = chat_template(prompter)
    add_no_special_tokens(tokenizer)
    patch = vision.size // round(vision.num_patches**0.5)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch,
        num_additional_image_tokens=int(vision.has_cls),
        vision_feature_select_strategy=select_strategy(model),
        chat_template=tokenizer.chat_template,
        image_token=IMAGE,
    )


def add_no_special_tokens(tokenizer: PreTrainedTokenizerBase) -> None:
    """The chat template has all of them: a program that tokenises its text would add a second begin of sequence, or one that it lacks."""
    for name in ("add_bos_token", "add_eos_token"):
        if getattr(tokenizer, name, None):
            setattr(tokenizer, name, False)
    if tokenizer("a").input_ids != tokenizer("a", add_special_tokens=False).input_ids:
        tokenizer.backend_tokenizer.post_processor = processors.Sequence([])


def chat_template(prompter: Prompter) -> str:
    """Our prompt in Jinja. The plain one is: begin of sequence, all images, then `Question: ...\\nAnswer:` for each turn."""
    tokenizer = prompter.tokenizer
    if isinstance(prompter, ChatPrompter):
        return CHAT_IMAGES.replace("IMAGE", IMAGE).replace("DATE", DATE) + tokenizer.get_chat_template()
    bos = tokenizer.convert_ids_to_tokens(prompter.bos)
    eos = tokenizer.convert_ids_to_tokens(prompter.eos)
    values = {"BOS": bos, "EOS": eos, "IMAGE": IMAGE, "QUESTION_GAP": question_separator(prompter), "GAP": answer_separator(prompter)}
    return re.sub("|".join(values), lambda match: values[match[0]], TEMPLATE)


def question_separator(prompter: Prompter) -> str:
    """The separator between a special token and `Question:` for which the joined text has the tokens of training.

    Training tokenises a question as a text of its own. Some tokenizers (`Metaspace` with `prepend_scheme="first"`, LLaMA with
    `legacy=False`) mark the begin of a word there, but not after a special token.
    """
    expected = [prompter.image_id, *prompter.tokens(["Question: a?"])[0]]
    texts = {gap: f"{IMAGE}{gap}Question: a?" for gap in ("", " ")}
    return next((gap for gap, text in texts.items() if prompter.tokenizer(text, add_special_tokens=False).input_ids == expected), "")


def answer_separator(prompter: Prompter) -> str:
    """The separator between `Answer:` and the answer for which the joined text has the same tokens as its two parts in training."""
    expected = [token for text in prompter.tokens(["Question: a?\nAnswer:", "lung"]) for token in text]
    return next((gap for gap in ("", " ") if prompter.tokens([f"Question: a?\nAnswer:{gap}lung"])[0] == expected), " ")


# A content that is one text may hold placeholders, as lmms-eval and others write them; they move to the front like images in parts.
TEMPLATE = (
    "BOS"
    "{% for message in messages %}{% if message.content is string %}{{ 'IMAGE' * message.content.count('IMAGE') }}"
    "{% else %}{% for part in message.content %}{% if part.type == 'image' %}IMAGE{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% for message in messages %}"
    "{% if message.content is string %}{% set text = message.content | replace('IMAGE', '') %}"
    "{% else %}{% set text = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}{% endif %}"
    "{% if message.role == 'user' %}QUESTION_GAPQuestion: {{ text | trim }}\nAnswer:"
    "{% elif message.role == 'assistant' %}GAP{{ text | trim }}EOS"
    "{% else %}{{ raise_exception('unknown role; use user or assistant') }}{% endif %}"
    "{% endfor %}"
)


# Makes texts of messages in parts, with all images in front of the first question, for the template of the tokenizer that follows.
CHAT_IMAGES = (
    "{% set date_string = 'DATE' %}{% set chat = namespace(images='', messages=[]) %}"
    "{% for message in messages %}{% if message.content is string %}"
    "{% set chat.images = chat.images + 'IMAGE' * message.content.count('IMAGE') %}{% else %}{% for part in message.content %}"
    "{% if part.type == 'image' %}{% set chat.images = chat.images + 'IMAGE' %}{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% for message in messages %}"
    "{% if message.content is string %}{% set text = message.content | replace('IMAGE', '') %}"
    "{% else %}{% set text = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}{% endif %}"
    "{% set images = chat.images + '\n' if chat.images and message.role == 'user' else '' %}"
    "{% if images %}{% set chat.images = '' %}{% endif %}"
    "{% set chat.messages = chat.messages + [{'role': message.role, 'content': images + text | trim}] %}"
    "{% endfor %}{% set messages = chat.messages %}{{ '' }}"
)


@torch.no_grad()
def max_logit_difference(model: VLM, folder: Path) -> dict[str, float]:
    """Compares the written folder with the run on a fixed random image and question.

    Returns the largest absolute difference of a logit and the largest logit. The difference depends on the CPU: it is the rounding error of
    the written data type, which is relative to the largest logit.
    """
    prompter = model.prompter(budget=4096)
    size = model.vision.size
    pixels_13HW = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    prefix, prompt = prompter.question_ids(QUESTION, 1, max_new_tokens=MAX_NEW_TOKENS)
    ids_1T = torch.tensor([prefix + prompt])
    logits_1TV = model.language.base(inputs_embeds=model.embed(ids_1T, pixels_13HW)).logits
    llava = LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto", local_files_only=True).eval()
    values = model.vision.normalise(pixels_13HW).to(llava.dtype)
    difference_1TV = logits_1TV.float() - llava(input_ids=ids_1T, pixel_values=values).logits.float()
    return {"max_difference": difference_1TV.abs().max().item(), "largest": logits_1TV.abs().max().item()}
