"""The lines that a card shows: how each part is loaded. HERE is a folder or a repository of the hub, BASE the language model."""

HF = """```python
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

model = LlavaForConditionalGeneration.from_pretrained("HERE")
processor = AutoProcessor.from_pretrained("HERE", backend="pil")  # pil: exactly the pixels of training
content = [{"type": "image", "image": Image.open("scan.png")}, {"type": "text", "text": "Which organ is shown?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(answer, skip_special_tokens=True).strip())
```

`pipeline("image-text-to-text", model="HERE")(text=[{"role": "user", "content": content}])` answers too."""

ADAPTER = """The LoRA adapter of the language model alone; encoder and projector are not in it, so it answers questions without images.

```python
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("BASE")  # of the hub, or wherever the folder of this base model lies
model = PeftModel.from_pretrained(base, "HERE")
tokenizer = AutoTokenizer.from_pretrained("HERE")  # with the special tokens of training; those of a base may be wrong
text = tokenizer("Question: Is aspirin a drug?\\nAnswer:", add_special_tokens=False)["input_ids"]
inputs = torch.tensor([[tokenizer.bos_token_id, *text]])
answer = model.generate(
    inputs, max_new_tokens=64, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
)[0, inputs.shape[1] :]
print(tokenizer.decode(answer, skip_special_tokens=True).strip())
```"""

TIMM = """The image encoder alone, as it is after training.

```python
import timm
from PIL import Image

model = timm.create_model("HERE", pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**data, is_training=False)
x = transform(Image.open("scan.png").convert("RGB"))[None]
print(model(x).shape)
```

The language model saw the patch features of the last block before the final norm:
`model.forward_intermediates(x, indices=1, norm=False, intermediates_only=True, output_fmt="NLC")[0]`."""

# part -> (library, its lines, what timm and others want before the name of a folder and of a repository)
PARTS = {"hf": ("transformers", HF, "", ""), "adapter": ("peft", ADAPTER, "", ""), "timm": ("timm", TIMM, "local-dir:", "hf-hub:")}


def lines(part: str, *, base: str, repository: str | None) -> str:
    """For a reader beside the folder of the part, or of its `repository`."""
    _, text, folder, hub = PARTS[part]
    return text.replace("HERE", f"{hub}{repository}" if repository else f"{folder}{part}").replace("BASE", base)
