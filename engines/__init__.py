"""What the work is: the models, the documents they read and write, and the audio they hear.

    whisper | ctc | speakers | stanza | rev     a family of models, or a service, each; none knows another
        alignment | checkpoints                 words to times; models on disk
            registry | batching                 engines by name; which segments go together
                base > declaration              the protocol; what engines say of themselves before they are imported
                text > audio > errors           documents and formats; sound; what goes wrong

Imports go down only. Where to add what:
- a format: a module in text/formats, and its line in `FORMATS` there;
- an engine: a subclass of `base.Engine`, its declaration in its room's `declaration`, and the name of both among the
  entry points in pyproject.toml;
- a model family: a room beside whisper; an architecture that transformers lacks: as ctc/whisper_ctc.py.
"""
