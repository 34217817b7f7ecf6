"""Models on disk: a model's folder, its weights, the memory they take.

model_folder opens, checks and loads; quantization makes int8 of linear layers; footprint estimates memory;
whisper_layers is what the models are made of that prefork computes itself.
"""
