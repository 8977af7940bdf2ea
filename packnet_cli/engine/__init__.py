"""The packed model in motion: torch and timm."""
