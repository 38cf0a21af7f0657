# The text of the demo, shared with tests/eval/facts.sh. Source it.

# demo_text DIR TOKENS: writes DIR/intro.txt (a page, longer than the initial tokens), DIR/stream.txt (about TOKENS tokens)
# and DIR/end.txt (the end of it, about 4,096 tokens: all that a window of 1,024 can still feel). It is text that every
# Debian machine has, from the start again if it is not enough; 4.4 bytes are about a token.
demo_text() {
  local dir="$1" bytes=$(($2 * 44 / 10)) intro=3000
  : >"$dir/all"
  while [ "$(wc -c <"$dir/all")" -lt $((bytes + intro)) ]; do
    find /usr/share/common-licenses -type f | LC_ALL=C sort | while read -r file; do
      cat "$file"
      printf '\n\n'
    done >>"$dir/all"
  done
  local utf8="iconv -f utf-8 -t utf-8 -c"
  head -c "$intro" "$dir/all" | $utf8 >"$dir/intro.txt"
  head -c $((intro + bytes)) "$dir/all" | tail -c +$((intro + 1)) | $utf8 >"$dir/stream.txt"
  tail -c $((4096 * 44 / 10)) "$dir/stream.txt" | $utf8 >"$dir/end.txt"
  rm "$dir/all"
}
