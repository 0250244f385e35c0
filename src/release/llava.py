"""A trained VLM as `LlavaForConditionalGeneration` with its processor: the same numbers under the names that transformers knows."""

import copy
from pathlib import Path

import torch
from torch import Tensor
from transformers import CLIPImageProcessorPil, GenerationConfig, LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor
from transformers.initialization import no_init_weights

from src.data.prompt import IMAGE, Prompter
from src.model.projector import Projector
from src.model.vlm import VLM
from src.release.tower import tower_config, tower_state
from src.runtime.errors import UserError

MAX_NEW_TOKENS = 64


def save_llava(model: VLM, folder: Path, *, dtype: torch.dtype, prompter: Prompter) -> None:
    """Weights, processor, tokenizer, chat template and generation config; safetensors only, with LoRA merged in float32."""
    llava = to_llava(model, dtype=dtype)
    llava.save_pretrained(folder)
    generation_config(model, prompter).save_pretrained(folder)
    processor(model, prompter).save_pretrained(folder)


def to_llava(model: VLM, *, dtype: torch.dtype) -> LlavaForConditionalGeneration:
    """The model of transformers that computes what `model` computes."""
    language = merged_state(model)
    text = copy.deepcopy(model.language.base.config)
    text.use_cache, text.dtype, text._name_or_path = True, dtype, ""
    config = LlavaConfig(
        vision_config=tower_config(model.vision),
        text_config=text,
        image_token_index=model.image_id,
        image_seq_length=model.vision.num_patches,
        projector_hidden_act="linear" if model.projector.linear_2 is None else "gelu",
        vision_feature_select_strategy="default",  # without CLS
        vision_feature_layer=-1,  # after the last block, before the final norm
        multimodal_projector_bias=True,
        tie_word_embeddings=text.tie_word_embeddings,
        dtype=dtype,
    )
    with no_init_weights():
        llava = LlavaForConditionalGeneration(config)
    state = {f"model.vision_tower.{name}": value for name, value in tower_state(model.vision).items()}
    state |= {f"model.multi_modal_projector.{name}": value for name, value in projector_state(model.projector, text.hidden_size).items()}
    for name, value in language.items():
        state[f"model.language_model.{name.removeprefix('model.')}" if name.startswith("model.") else name] = value
    llava.load_state_dict(state, strict=True)
    return llava.to(dtype).eval()


def merged_state(model: VLM) -> dict[str, Tensor]:
    """The language model's tensors with every adapter added to its weight, in float32 whatever the base is stored in."""
    base = model.language.base
    state = {name.replace(".base_layer.", "."): value for name, value in base.state_dict().items() if ".lora_" not in name}
    for name, module in base.named_modules():
        if hasattr(module, "lora_A"):
            state[f"{name}.weight"] = module.base_layer.weight.float() + module.get_delta_weight("default").float()
    return state


def projector_state(projector: Projector, hidden: int) -> dict[str, Tensor]:
    """Llava's projector has two layers of the language model's width; a narrower inner layer is filled up with zeros, one matrix
    is followed by the identity. Both give the same numbers."""
    first = projector.linear_1
    if projector.linear_2 is None:
        second_HH, bias_H = torch.eye(hidden), torch.zeros(hidden)
        return {"linear_1.weight": first.weight, "linear_1.bias": first.bias, "linear_2.weight": second_HH, "linear_2.bias": bias_H}
    room = hidden - first.out_features
    if room < 0:
        raise UserError(
            f"transformers' Llava has a projector of at most the language model's width {hidden}, and this run's projector.hidden is "
            f"{first.out_features}; leave out the parts hf and space with parts=[adapter,timm]"
        )
    return {
        "linear_1.weight": torch.nn.functional.pad(first.weight, (0, 0, 0, room)),
        "linear_1.bias": torch.nn.functional.pad(first.bias, (0, room)),
        "linear_2.weight": torch.nn.functional.pad(projector.linear_2.weight, (0, room)),
        "linear_2.bias": projector.linear_2.bias,
    }


def generation_config(model: VLM, prompter: Prompter) -> GenerationConfig:
    """Greedy; never the image token, nor rows that only round the embedding up."""
    language = model.language
    spare = range(len(language.tokenizer), language.base.config.vocab_size)
    return GenerationConfig(
        bos_token_id=prompter.bos,
        eos_token_id=prompter.eos,
        pad_token_id=language.tokenizer.pad_token_id,
        max_new_tokens=MAX_NEW_TOKENS,
        do_sample=False,
        suppress_tokens=[model.image_id, *spare],
    )


def processor(model: VLM, prompter: Prompter) -> LlavaProcessor:
    """Squashes images as we do, puts P placeholders per image first, and asks in our words.

    `from_pretrained(..., backend="pil")` gives exactly our pixels; transformers' default resizes with torchvision, whose bicubic
    differs by up to one grey level.
    """
    vision = model.vision
    side = {"height": vision.size, "width": vision.size}
    images = CLIPImageProcessorPil(
        size=side,
        crop_size=side,  # not used, but read by whoever counts the tokens of an image
        do_center_crop=False,
        image_mean=vision.mean.flatten().tolist(),
        image_std=vision.std.flatten().tolist(),
    )
    tokenizer = copy.deepcopy(model.language.tokenizer)
    tokenizer.model_max_length = prompter.budget
    patch = vision.size // round(vision.num_patches**0.5)
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=patch,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        chat_template=chat_template(prompter),
        image_token=IMAGE,
    )


def chat_template(prompter: Prompter) -> str:
    """Our prompt in Jinja: begin of sequence, all images, then `Question: ...\\nAnswer:` per turn."""
    tokenizer = prompter.tokenizer
    bos = tokenizer.convert_ids_to_tokens(prompter.bos)
    eos = tokenizer.convert_ids_to_tokens(prompter.eos)
    return TEMPLATE.replace("BOS", bos).replace("EOS", eos).replace("IMAGE", IMAGE).replace("GAP", answer_separator(prompter))


def answer_separator(prompter: Prompter) -> str:
    """What stands between `Answer:` and the answer in one text, so that its tokens are those of the two parts."""
    apart = [token for text in prompter.tokens(["Question: a?\nAnswer:", "lung"]) for token in text]
    return next((gap for gap in ("", " ") if prompter.tokens([f"Question: a?\nAnswer:{gap}lung"])[0] == apart), " ")


TEMPLATE = (
    "BOS"
    "{% for message in messages %}{% if message.content is not string %}{% for part in message.content %}"
    "{% if part.type == 'image' %}IMAGE{% endif %}{% endfor %}{% endif %}{% endfor %}"
    "{% for message in messages %}"
    "{% if message.content is string %}{% set text = message.content %}"
    "{% else %}{% set text = message.content | selectattr('type', 'equalto', 'text') | map(attribute='text') | join(' ') %}{% endif %}"
    "{% if message.role == 'user' %}Question: {{ text | trim }}\nAnswer:"
    "{% elif message.role == 'assistant' %}GAP{{ text | trim }}EOS"
    "{% else %}{{ raise_exception('only the roles user and assistant are known') }}{% endif %}"
    "{% endfor %}"
)
