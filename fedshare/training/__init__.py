"""Client training: the model in memory, the fit that a strategy asks for, and the engine that carries it out."""
