"""What was measured, and tables of it. No model is known here."""
