// SAMPLE, not run on a device. Pure Kotlin, held to the committed vectors on a JVM: see README.md.
package pocketrank.sample

/**
 * Reads a bundle's `manifest.json` and spec. An app with kotlinx.serialization or Moshi can use that; `org.json` is not suitable
 * for integers beyond 2^53. Integers become `Long`, other numbers `Double`.
 */
class Json private constructor(private val text: String) {
    private var at = 0

    private fun value(depth: Int): Any? {
        if (depth > DEPTH_MAX) fail("more than $DEPTH_MAX levels")
        skipSpace()
        return when (peek()) {
            '{' -> entries('}') { string().also { skipSpace(); expect(':') } to value(depth + 1) }.toMap()
            '[' -> entries(']') { value(depth + 1) }
            '"' -> string()
            't' -> word("true", true)
            'f' -> word("false", false)
            'n' -> word("null", null)
            else -> number()
        }
    }

    private fun <T> entries(end: Char, entry: () -> T): List<T> {
        val found = ArrayList<T>()
        at++
        skipSpace()
        if (peek() == end) { at++; return found }
        while (true) {
            skipSpace()
            found.add(entry())
            skipSpace()
            if (peek() == end) { at++; return found }
            expect(',')
        }
    }

    private fun string(): String {
        expect('"')
        val out = StringBuilder()
        while (true) {
            when (val c = take()) {
                '"' -> return out.toString()
                '\\' -> out.append(
                    when (val escaped = take()) {
                        'n' -> '\n'
                        't' -> '\t'
                        'r' -> '\r'
                        'b' -> '\b'
                        'f' -> '\u000c'
                        'u' -> (String(CharArray(4) { take() }).toIntOrNull(16) ?: fail("a bad escape")).toChar()
                        '"', '\\', '/' -> escaped
                        else -> fail("a bad escape")
                    },
                )
                else -> if (c < ' ') fail("a control character") else out.append(c)
            }
        }
    }

    private fun number(): Number {
        val match = NUMBER.matchAt(text, at) ?: fail("`${text.substring(at).take(10)}`")
        at = match.range.last + 1
        val found = match.value
        if (found.none { it in ".eE" }) return found.toLongOrNull() ?: fail("an integer beyond 64 signed bits")
        return found.toDouble()
    }

    private fun <T> word(word: String, value: T): T = value.also { word.forEach(::expect) }

    private fun skipSpace() { while (at < text.length && text[at] in " \t\r\n") at++ }

    private fun peek() = if (at < text.length) text[at] else fail("an early end")

    private fun take() = peek().also { at++ }

    private fun expect(c: Char) { if (take() != c) fail("something else than `$c` before character $at") }

    private fun fail(got: String): Nothing = throw ContractException("$", "JSON", got)

    companion object {
        private const val DEPTH_MAX = 32
        private val NUMBER = Regex("-?(0|[1-9][0-9]*)(\\.[0-9]+)?([eE][-+]?[0-9]+)?")

        fun decode(bytes: ByteArray): Node {
            val json = Json(bytes.decodeToString())
            val value = json.value(0)
            json.skipSpace()
            if (json.at < json.text.length) json.fail("text behind the end")
            return Node(value)
        }
    }
}
