"""A small network in the format of the runtime that it goes to; each file is checked by running it."""

from adjoined.export.write import FORMATS, Exported, export

__all__ = ["FORMATS", "Exported", "export"]
