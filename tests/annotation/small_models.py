"""A tiny LLaVA-NeXT and a tiny Llama with random weights: everything but the sense of what they say is real."""

import json

from tests.small import SIZES

TEMPLATE = (
    "{% for m in messages %}{{ m.role }}: {% if m.content is string %}{{ m.content }}{% else %}"
    "{% for p in m.content %}{% if p.type == 'image' or p.type == 'image_url' %}<image>{% else %}{{ p.text }}"
    "{% endif %}{% endfor %}{% endif %}{{ '\\n' }}{% endfor %}assistant: "
)


def small_tokenizer(texts):
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>", "<image>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    inner.train_from_iterator(
        texts, trainers.BpeTrainer(vocab_size=SIZES.vocabulary, special_tokens=special, initial_alphabet=alphabet)
    )
    names = {
        "pad_token": "<pad>",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "extra_special_tokens": {"image_token": "<image>"},
    }
    return PreTrainedTokenizerFast(tokenizer_object=inner, chat_template=TEMPLATE, **names)


def llama_config(tokenizer):
    from transformers import LlamaConfig

    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    return LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=4096, **sizes, **tokens)


def save_llm(folder, texts):
    import torch
    from transformers import LlamaForCausalLM

    tokenizer = small_tokenizer(texts)
    torch.manual_seed(0)
    LlamaForCausalLM(llama_config(tokenizer)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def save_vlm(folder, texts):
    import torch
    from transformers import (
        CLIPVisionConfig,
        LlavaNextConfig,
        LlavaNextForConditionalGeneration,
        LlavaNextImageProcessor,
        LlavaNextProcessor,
    )

    tokenizer = small_tokenizer(texts)
    vision = CLIPVisionConfig(
        image_size=32, patch_size=16, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2
    )
    image = tokenizer.convert_tokens_to_ids("<image>")
    grid = [[32, 64], [64, 32], [64, 64]]
    config = LlavaNextConfig(
        vision_config=vision, text_config=llama_config(tokenizer), image_token_index=image, image_grid_pinpoints=grid
    )
    torch.manual_seed(0)
    model = LlavaNextForConditionalGeneration(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    model.save_pretrained(folder)
    images = LlavaNextImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, image_grid_pinpoints=grid
    )
    LlavaNextProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    assert json.loads((folder / "config.json").read_text())["model_type"] == "llava_next"
    return str(folder)


def save_idefics3(folder, texts):
    """The family of the model in `recipes/local_vlm.yaml`: images in tiles of 32 pixels, each 4 tokens."""
    import torch
    from transformers import (
        Idefics3Config,
        Idefics3ForConditionalGeneration,
        Idefics3ImageProcessor,
        Idefics3Processor,
    )

    tokenizer = small_tokenizer(texts)
    tiles = [f"<row_{i + 1}_col_{j + 1}>" for i in range(6) for j in range(6)]
    marks = ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>", *tiles]
    tokenizer.add_special_tokens({"extra_special_tokens": ["<image>", *marks]})
    vision = {"image_size": 32, "patch_size": 8, "hidden_size": 32, "intermediate_size": 64}
    vision |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    text = llama_config(tokenizer).to_dict()
    config = Idefics3Config(
        vision_config=vision,
        text_config=text,
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=0,
    )
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(config)
    model.generation_config.eos_token_id, model.generation_config.pad_token_id = 2, 0
    model.save_pretrained(folder)
    images = Idefics3ImageProcessor(size={"longest_edge": 64}, max_image_size={"longest_edge": 32})
    Idefics3Processor(images, tokenizer, image_seq_len=4, chat_template=TEMPLATE).save_pretrained(folder)
    return str(folder)


def teach(folder, reply, steps=200):
    """Train the tiny LLaVA-NeXT in a folder to say one sentence about any two images, whatever the prompt."""
    import random

    import torch
    from PIL import Image
    from transformers import AutoModelForImageTextToText, AutoProcessor

    model, processor = AutoModelForImageTextToText.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, steps)
    answer = processor.tokenizer(reply + processor.tokenizer.eos_token, return_tensors="pt", add_special_tokens=False)
    rng = random.Random(0)
    for _ in range(steps):
        text = "".join(rng.choice("abcdefgh ijkl.,\n") for _ in range(rng.randint(20, 500)))
        images = [Image.new("RGB", (40, 40), (rng.randrange(256), 0, rng.randrange(256))) for _ in range(2)]
        content = [{"type": "text", "text": text}, *({"type": "image", "image": image} for image in images)]
        inputs = processor.apply_chat_template(
            [[{"role": "user", "content": content}]],
            tokenize=True,
            add_generation_prompt=True,
            return_dict=True,
            return_tensors="pt",
        )
        prompt = inputs.pop("input_ids")
        ids = torch.cat([prompt, answer["input_ids"]], 1)
        labels = ids.clone()
        labels[:, : prompt.shape[1]] = -100
        inputs["attention_mask"] = torch.ones_like(ids)
        model(input_ids=ids, labels=labels, **inputs).loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
