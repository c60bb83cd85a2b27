"""joulegram: joules in, grams out; what a job may import, light enough to cost it nothing."""

__version__ = "0.1.0"
