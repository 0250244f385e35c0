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
print(processor.decode(answer, skip_special_tokens=True))
```

`pipeline("image-text-to-text", model="HERE")` answers too."""

ADAPTER = """The LoRA adapter of the language model alone; encoder and projector are not in it, so it answers questions without images.

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM

model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("BASE"), "HERE")
```"""

TIMM = """The image encoder alone, as it is after training.

```python
import timm

model = timm.create_model("HERE", pretrained=True)
data = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**data, is_training=False)
```

The language model saw the patch features of the last block before the final norm:
`model.forward_intermediates(x, indices=1, norm=False, intermediates_only=True, output_fmt="NLC")[0]`."""

# part -> (library, its lines, what timm and others want before the name of a folder and of a repository)
PARTS = {"hf": ("transformers", HF, "", ""), "adapter": ("peft", ADAPTER, "", ""), "timm": ("timm", TIMM, "local-dir:", "hf-hub:")}


def lines(part: str, *, base: str, repository: str | None) -> str:
    """For a reader beside the folder of the part, or of its `repository`."""
    _, text, folder, hub = PARTS[part]
    return text.replace("HERE", f"{hub}{repository}" if repository else f"{folder}{part}").replace("BASE", base)
