"""AutoAttack and its members."""
