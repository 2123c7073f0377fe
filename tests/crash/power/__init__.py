"""Loses power in a model: from what processes did to files, recorded, to the states that a drive may be left in."""
