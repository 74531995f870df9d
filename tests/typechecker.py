"""Beartype as the annotations mean it: an int is as good as a float."""

from beartype import BeartypeConf, beartype

CONF = BeartypeConf(is_pep484_tower=True, claw_is_pep526=False)
checked = beartype(conf=CONF)
