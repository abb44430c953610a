"""Janus-Pro: a Llama that reads prompts as token ids and draws codes of a VQ tokenizer of its own."""
