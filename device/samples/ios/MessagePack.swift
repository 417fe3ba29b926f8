// SAMPLE, never compiled and never run: there was no Swift compiler. See README.md.
import Foundation

/// Something crossed the wire that the contract does not allow; `path` says where, such as `$.candidates.vector`.
struct ContractError: Error, CustomStringConvertible {
    let path: String
    let expected: String
    let got: String

    var description: String { "Expected \(expected), got \(got) - at `\(path)`" }
}

let wireVersion: Int64 = 1

/// What MessagePack can hold of the contract. `raw` is already MessagePack, written unchanged.
enum Value {
    case null
    case bool(Bool)
    case int(Int64)
    case double(Double)
    case text(String)
    case bytes([UInt8])
    case list([Value])
    case map([String: Value])
    case raw(Data)
}

/// A decoded value and its path. Fields that are not read are ignored; an absent one is null.
struct Node {
    let value: Value
    var path = "$"

    func field(_ name: String) throws -> Node {
        guard case .map(let fields) = value else { throw refusal("`object`") }
        return Node(value: fields[name] ?? .null, path: "\(path).\(name)")
    }

    func text() throws -> String {
        guard case .text(let text) = value else { throw refusal("`str`") }
        return text
    }

    func int() throws -> Int64 {
        guard case .int(let int) = value else { throw refusal("`int`") }
        return int
    }

    func double() throws -> Double {
        switch value {
        case .double(let double): return double
        case .int(let int): return Double(int)
        default: throw refusal("`float`")
        }
    }

    func bytes() throws -> [UInt8] {
        guard case .bytes(let bytes) = value else { throw refusal("`bytes`") }
        return bytes
    }

    func list() throws -> [Node] {
        guard case .list(let entries) = value else { throw refusal("`array`") }
        return entries.enumerated().map { Node(value: $0.element, path: "\(path)[\($0.offset)]") }
    }

    /// The value as `read` returns it, or nil when there is none.
    func optional<T>(_ read: (Node) throws -> T) throws -> T? {
        if case .null = value { return nil }
        return try read(self)
    }

    /// Structs of another version are refused, even when the rest would decode.
    func checkVersion() throws {
        let version = try field("version").optional { try $0.int() } ?? wireVersion
        if version != wireVersion {
            throw ContractError(path: "\(path).version", expected: "version \(wireVersion)", got: "version \(version)")
        }
    }

    func refusal(_ expected: String) -> ContractError {
        ContractError(path: path, expected: expected, got: String(String(describing: value).prefix(60)))
    }
}

/// The part of MessagePack that the contract uses: no extension types, text as keys, integers of 64 signed bits.
enum MessagePack {
    static func decode(_ data: Data) throws -> Node {
        var reader = Reader(bytes: [UInt8](data))
        let value = try reader.value(depth: 0)
        guard reader.left == 0 else { throw malformed("\(reader.left) bytes behind the end") }
        return Node(value: value)
    }

    static func encode(_ value: Value) -> Data {
        var out = Data()
        write(value, to: &out)
        return out
    }

    private static func malformed(_ got: String) -> ContractError {
        ContractError(path: "$", expected: "MessagePack", got: got)
    }

    private struct Reader {
        let bytes: [UInt8]
        var at = 0
        var left: Int { bytes.count - at }

        init(bytes: [UInt8]) { self.bytes = bytes }

        mutating func value(depth: Int) throws -> Value {
            // A page has 4 levels; a hostile one must not overflow the stack.
            guard depth <= 32 else { throw MessagePack.malformed("more than 32 levels") }
            let code = UInt8(try unsigned(1))
            switch code {
            case 0x00...0x7f: return .int(Int64(code))
            case 0x80...0x8f: return try map(Int(code & 0x0f), depth)
            case 0x90...0x9f: return try list(Int(code & 0x0f), depth)
            case 0xa0...0xbf: return .text(try text(Int(code & 0x1f)))
            case 0xc0: return .null
            case 0xc2: return .bool(false)
            case 0xc3: return .bool(true)
            case 0xc4, 0xc5, 0xc6: return .bytes(Array(try take(count(1 << (code - 0xc4)))))
            case 0xca: return .double(Double(Float(bitPattern: UInt32(try unsigned(4)))))
            case 0xcb: return .double(Double(bitPattern: try unsigned(8)))
            case 0xcc, 0xcd, 0xce, 0xcf:
                guard let int = Int64(exactly: try unsigned(1 << Int(code - 0xcc))) else {
                    throw MessagePack.malformed("an integer beyond 64 signed bits")
                }
                return .int(int)
            case 0xd0: return .int(Int64(Int8(bitPattern: UInt8(try unsigned(1)))))
            case 0xd1: return .int(Int64(Int16(bitPattern: UInt16(try unsigned(2)))))
            case 0xd2: return .int(Int64(Int32(bitPattern: UInt32(try unsigned(4)))))
            case 0xd3: return .int(Int64(bitPattern: try unsigned(8)))
            case 0xd9, 0xda, 0xdb: return .text(try text(count(1 << (code - 0xd9))))
            case 0xdc, 0xdd: return try list(count(2 << (code - 0xdc)), depth)
            case 0xde, 0xdf: return try map(count(2 << (code - 0xde)), depth)
            case 0xe0...0xff: return .int(Int64(Int8(bitPattern: code)))
            default: throw MessagePack.malformed("the code \(code)")
            }
        }

        private mutating func take(_ size: Int) throws -> ArraySlice<UInt8> {
            guard size <= left else { throw MessagePack.malformed("an early end") }
            at += size
            return bytes[at - size..<at]
        }

        /// Big-endian, of 1, 2, 4 or 8 bytes.
        private mutating func unsigned(_ size: Int) throws -> UInt64 {
            try take(size).reduce(0) { $0 << 8 | UInt64($1) }
        }

        /// A size beyond the remaining bytes is refused before anything is allocated for it.
        private mutating func count(_ size: UInt8) throws -> Int {
            let count = Int(try unsigned(Int(size)))
            guard count <= left else { throw MessagePack.malformed("a claim of \(count) with \(left) bytes left") }
            return count
        }

        private mutating func text(_ size: Int) throws -> String {
            guard let text = String(bytes: try take(size), encoding: .utf8) else { throw MessagePack.malformed("text that is not UTF-8") }
            return text
        }

        private mutating func list(_ size: Int, _ depth: Int) throws -> Value {
            var entries: [Value] = []
            for _ in 0..<size { entries.append(try value(depth: depth + 1)) }
            return .list(entries)
        }

        private mutating func map(_ size: Int, _ depth: Int) throws -> Value {
            var fields: [String: Value] = [:]
            for _ in 0..<size {
                guard case .text(let key) = try value(depth: depth + 1) else { throw MessagePack.malformed("a key that is no text") }
                fields[key] = try value(depth: depth + 1)
            }
            return .map(fields)
        }
    }

    private static func write(_ value: Value, to out: inout Data) {
        switch value {
        case .null: out.append(0xc0)
        case .bool(let bool): out.append(bool ? 0xc3 : 0xc2)
        case .int(let int):
            // Fixed ints, else all 64 bits: a reader takes any width.
            if (-32...127).contains(int) { out.append(UInt8(truncatingIfNeeded: int)) } else { append(0xd3, int, to: &out) }
        case .double(let double): append(0xcb, double.bitPattern, to: &out)
        case .text(let text):
            append(0xdb, UInt32(text.utf8.count), to: &out)
            out.append(contentsOf: text.utf8)
        case .bytes(let bytes):
            append(0xc6, UInt32(bytes.count), to: &out)
            out.append(contentsOf: bytes)
        case .list(let entries):
            append(0xdd, UInt32(entries.count), to: &out)
            for entry in entries { write(entry, to: &out) }
        case .map(let fields):
            append(0xdf, UInt32(fields.count), to: &out)
            for (key, entry) in fields {
                write(.text(key), to: &out)
                write(entry, to: &out)
            }
        case .raw(let bytes): out.append(bytes)
        }
    }

    private static func append<T: FixedWidthInteger>(_ code: UInt8, _ number: T, to out: inout Data) {
        out.append(code)
        withUnsafeBytes(of: number.bigEndian) { out.append(contentsOf: $0) }
    }
}
