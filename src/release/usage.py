"""Code on the cards that loads each part. HERE stands for a folder or a repository of the Hub, BASE for the language model."""

HF = """```python
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

model = LlavaForConditionalGeneration.from_pretrained("HERE")
processor = AutoProcessor.from_pretrained("HERE", backend="pil")  # "pil" gives exactly the pixels of training
content = [{"type": "image", "image": Image.open("scan.png")}, {"type": "text", "text": "Which organ is shown?"}]
inputs = processor.apply_chat_template(
    [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt"
)
answer = model.generate(**inputs)[0, inputs["input_ids"].shape[1] :]
print(processor.decode(answer, skip_special_tokens=True).strip())
```

`pipeline("image-text-to-text", model="HERE")(text=[{"role": "user", "content": content}])` gives an answer, too.
`vllm serve HERE --model-impl transformers` serves it with vLLM."""

PLAIN_PROMPT = """text = tokenizer("Question: Is aspirin a drug?\\nAnswer:", add_special_tokens=False)["input_ids"]
inputs = torch.tensor([[tokenizer.bos_token_id, *text]])
answer = model.generate(
    inputs, max_new_tokens=64, do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
)[0, inputs.shape[1] :]"""

CHAT_PROMPT = """from transformers import GenerationConfig

inputs = tokenizer.apply_chat_template(
    [{"role": "user", "content": "Is aspirin a drug?"}], add_generation_prompt=True, return_dict=False, return_tensors="pt"
)
generation = GenerationConfig.from_pretrained("HERE")
answer = model.generate(inputs, generation_config=generation)[0, inputs.shape[1] :]"""

ADAPTER = """The LoRA adapter of the language model without the image encoder and the projector. It answers questions without images.

```python
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("BASE")  # a repository of the Hub, or the folder of this base model
model = PeftModel.from_pretrained(base, "HERE")
tokenizer = AutoTokenizer.from_pretrained("HERE")  # has the special tokens of training; those of the base model may be wrong
PROMPT
print(tokenizer.decode(answer, skip_special_tokens=True).strip())
```"""

TIMM = """The image encoder after training.

```python
import timm
from PIL import Image

model = timm.create_model("HERE", pretrained=True).eval()
data = timm.data.resolve_model_data_config(model)
transform = timm.data.create_transform(**data, is_training=False)
x = transform(Image.open("scan.png").convert("RGB"))[None]
print(model(x).shape)
```

The language model was trained on the patch features of the last block, before the final norm:
`model.forward_intermediates(x, indices=1, norm=False, intermediates_only=True, output_fmt="NLC")[0]`."""

# part -> (library, text, prefix of a folder name, prefix of a repository name)
PARTS = {"hf": ("transformers", HF, "", ""), "adapter": ("peft", ADAPTER, "", ""), "timm": ("timm", TIMM, "local-dir:", "hf-hub:")}


def usage_text(part: str, *, base: str, repository: str | None, template: str = "plain") -> str:
    """The text for the local folder of a part, or for its `repository`. `template` is that of the prompts."""
    _, text, folder_prefix, hub_prefix = PARTS[part]
    text = text.replace("PROMPT", CHAT_PROMPT if template == "chat" else PLAIN_PROMPT)
    return text.replace("HERE", f"{hub_prefix}{repository}" if repository else f"{folder_prefix}{part}").replace("BASE", base)
