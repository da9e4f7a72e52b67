"""The encoder process: tunes a sentence encoder on a round's rows and labels texts with it."""
