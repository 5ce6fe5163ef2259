"""Private fine-tuning of language models: data, objectives, generation, evaluation, saving.

Room: recipes.text. The only place that imports transformers, peft and the libraries of text metrics.
"""
