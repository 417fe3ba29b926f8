// SAMPLE, never compiled and never run: there was no Swift compiler. See README.md.
import CryptoKit
import Foundation

/// A bundle that must not be used. The app keeps the one it has, or cloud order.
struct BundleError: Error {
    let message: String
}

/// A folder with a manifest, a feature spec and models, whose listed files were all checked against the manifest. Download into
/// a new folder, open it, and only then remember the new folder's name: a bundle is installed completely or not at all.
/// Keep it in Application Support and set `isExcludedFromBackup`. A change of bundle needs a new session.
///
/// The manifest's signature must be verified before this; see "What is left out" in README.md.
struct ModelBundle {
    let folder: URL
    let splitVersion: String
    let spec: FeatureSpec
    private let models: [Manifest.Model]

    static let textMax = 4 << 20 // bytes of a manifest or spec; real ones have thousands
    static let pathMax = 1024

    private struct Manifest: Decodable {
        struct File: Decodable {
            let path: String
            let bytes: Int
            let sha256: String
        }

        struct Model: Decodable {
            let form: String
            let format: String
            let precision: String
            let path: String
            let bytes: Int
            let stage: String?
            let group: String?
        }

        let version: Int64?
        let splitVersion: String
        let spec: String
        let expiresMs: Int64?
        let files: [File]
        let models: [Model]

        private enum CodingKeys: String, CodingKey {
            case version, spec, files, models
            case splitVersion = "split_version"
            case expiresMs = "expires_ms"
        }
    }

    /// The .mlpackage of a form's whole model, for all users; nil when there is none.
    func model(_ form: Form, format: String = "coreml", precision: String = "fp16") -> URL? {
        let found = models.first {
            $0.form == form.rawValue && $0.format == format && $0.precision == precision && $0.group == nil
                && ($0.stage ?? "whole") == "whole"
        }
        return found.map { folder.appending(path: $0.path, directoryHint: .isDirectory) }
    }

    /// Read and check the whole bundle, which takes some milliseconds, not on the main thread.
    init(opening folder: URL, now: Date = Date()) throws {
        let manifest = try JSONDecoder().decode(Manifest.self, from: Self.text(folder.appending(path: "manifest.json")))
        guard manifest.version ?? wireVersion == wireVersion else { throw BundleError(message: "a manifest of another version") }
        if let expires = manifest.expiresMs, now.timeIntervalSince1970 * 1000 >= Double(expires) {
            throw BundleError(message: "\(folder) has expired")
        }
        var listed: [String: Int] = [:]
        for file in manifest.files {
            guard listed[file.path] == nil, file.path != "manifest.json" else {
                throw BundleError(message: "\(file.path) is listed twice")
            }
            try Self.check(folder, file)
            listed[file.path] = file.bytes
        }
        guard listed[manifest.spec] != nil else { throw BundleError(message: "the spec \(manifest.spec) is not listed") }
        for model in manifest.models {
            let bytes = listed.filter { $0.key == model.path || $0.key.hasPrefix(model.path + "/") }.values.reduce(0, +)
            guard bytes > 0, bytes == model.bytes else { throw BundleError(message: "the model \(model.path) is not what is listed") }
        }
        self.folder = folder
        splitVersion = manifest.splitVersion
        spec = try FeatureSpec.read(Self.text(folder.appending(path: manifest.spec)))
        models = manifest.models
    }

    private static func text(_ file: URL) throws -> Data {
        let size = try file.resourceValues(forKeys: [.fileSizeKey]).fileSize ?? 0
        guard size <= textMax else { throw BundleError(message: "\(file) has more than \(textMax) bytes") }
        return try Data(contentsOf: file)
    }

    private static func check(_ folder: URL, _ file: Manifest.File) throws {
        let parts = file.path.components(separatedBy: "/")
        guard file.path.count <= pathMax, parts.allSatisfy({ !["", ".", ".."].contains($0) }),
              !file.path.contains(where: { "\\:\0".contains($0) }) else {
            throw BundleError(message: "the path \(file.path) leaves the folder")
        }
        var at = folder
        for part in parts {
            at.append(path: part)
            if try at.resourceValues(forKeys: [.isSymbolicLinkKey]).isSymbolicLink == true {
                throw BundleError(message: "\(at) is a symbolic link")
            }
        }
        let found = try at.resourceValues(forKeys: [.isRegularFileKey, .fileSizeKey])
        guard found.isRegularFile == true, found.fileSize == file.bytes else {
            throw BundleError(message: "\(at) has not \(file.bytes) bytes")
        }
        let digest = SHA256.hash(data: try Data(contentsOf: at, options: .mappedIfSafe))
        guard digest.map({ String(format: "%02x", $0) }).joined() == file.sha256.lowercased() else {
            throw BundleError(message: "\(at) is not what the manifest says")
        }
    }
}
