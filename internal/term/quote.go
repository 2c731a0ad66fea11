package term

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Quote returns text as it is, or as a Go string literal if it holds what is not printable, a space or a quote: so nothing
// that is printed as it is can be taken for a literal, and an empty text is seen.
func Quote(text string) string {
	if text == "" || strings.ContainsAny(text, "\"\\ ") || !printable(text) {
		return strconv.Quote(text)
	}
	return text
}

func printable(text string) bool {
	for _, r := range text {
		if !strconv.IsPrint(r) {
			return false
		}
	}
	return utf8.ValidString(text)
}

// Clean returns text with what is not printable escaped, other than ends of lines: for sentences, which have spaces and quotes.
func Clean(text string) string {
	if printable(strings.ReplaceAll(text, "\n", "")) {
		return text
	}
	var b strings.Builder
	for len(text) > 0 {
		r, n := utf8.DecodeRuneInString(text)
		switch {
		case r == '\n', strconv.IsPrint(r) && (r != utf8.RuneError || n > 1):
			b.WriteString(text[:n])
		default:
			quoted := strconv.Quote(text[:n])
			b.WriteString(quoted[1 : len(quoted)-1])
		}
		text = text[n:]
	}
	return b.String()
}

// Line is Clean, with ends of lines as "; ": for what is to stay one line, whoever chose a part of it.
func Line(text string) string {
	return Clean(strings.ReplaceAll(strings.TrimRight(text, "\n"), "\n", "; "))
}

// JSON prints what as one line of JSON. What is not printable is escaped there too: JSON itself leaves DEL and C1 controls as they are, which
// some terminals obey.
func JSON(w io.Writer, what any) error {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(what); err != nil {
		return err
	}
	var out strings.Builder
	for _, r := range b.String() { // valid UTF-8, and all but ASCII is within strings
		if r < utf8.RuneSelf && r != 0x7f || strconv.IsPrint(r) {
			out.WriteRune(r)
			continue
		}
		if r > 0xffff {
			out.WriteRune(r) // no control character is up there
			continue
		}
		_, _ = fmt.Fprintf(&out, `\u%04x`, r)
	}
	_, err := io.WriteString(w, out.String())
	return err
}
