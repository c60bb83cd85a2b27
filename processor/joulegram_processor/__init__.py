"""The join: energy to spans, intensity to energy, attributes to spans."""
