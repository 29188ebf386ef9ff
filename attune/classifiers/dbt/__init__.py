"""The four stages of dialectical behaviour therapy."""
