"""Does the written folder compute what the run computes?"""

from pathlib import Path

import torch
from transformers import LlavaForConditionalGeneration

from src.data.prompt import prompt_answer_pairs
from src.data.record import Record
from src.model.vlm import VLM

QUESTION = Record(key="probe", source="probe", split="test", turns=[("Which organ is shown in this image?", "")])


@torch.no_grad()
def max_logit_difference(model: VLM, folder: Path) -> dict[str, float]:
    """The largest absolute difference of a logit on a fixed random image and question, and the largest logit, over the tokens that exist.

    The difference depends on the CPU: it is the rounding of the written data type, which is relative to the largest logit.
    """
    prompter = model.prompter(budget=4096)
    size = model.vision.size
    pixels_13HW = torch.randint(0, 256, (1, 3, size, size), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    ids_1T = torch.tensor([prompter.prefix(1) + prompter.tokens([prompt_answer_pairs(QUESTION)[0][0]])[0]])
    mine_1TV = model.language.base(inputs_embeds=model.embed(ids_1T, pixels_13HW)).logits
    llava = LlavaForConditionalGeneration.from_pretrained(folder, dtype="auto", local_files_only=True).eval()
    values = model.vision.normalise(pixels_13HW).to(llava.dtype)
    theirs_1TV = llava(input_ids=ids_1T, pixel_values=values).logits
    apart_1TV = mine_1TV.float() - theirs_1TV.float()
    return {"max_difference": apart_1TV.abs().max().item(), "largest": mine_1TV.abs().max().item()}
